"""Programs: what an artifact says of each program of a model that came as several."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokopt.targets.signature import Signature


@dataclass(frozen=True)
class ProgramEntry:
    """One of several programs: its name, its files' ``part``, what it takes and gives.

    One that ``follows`` (decode) runs behind the main one, as often as its caller wants.
    ``coders`` code rows of its caches between two calls.
    """

    name: str
    part: str
    signature: Signature
    follows: bool = False
    coders: tuple[Coder, ...] = ()


@dataclass(frozen=True)
class CodedCache:
    """A cache some rows of which are coded: the input ``window`` holds the others, the last ones.

    ``parts``: the input of the program for each output of the coder.  ``rows``: of inputs that tell
    by dim 2 how many rows are coded, the rows of an entry.  ``salience``: the output of the program
    with ``[B, heads, rows]`` of the window that the coder takes beside the rows, None if it does
    not.
    """

    window: str
    parts: Mapping[str, str]
    rows: Mapping[str, int]
    salience: str | None = None


@dataclass(frozen=True)
class Coder(ProgramEntry):
    """A program that takes ``unit`` rows of a window and gives their codes.

    It takes ``rows`` ``[N, heads, unit, width]``, and ``salience`` ``[N, heads, unit]`` where its
    caches have one, and gives tensors ``[N, heads, n, ...]``, which go behind those that are there
    along dim 2.  The last ``waits`` rows of a window always stay.  ``pooled``: what is coded is not
    in the order of the rows.
    """

    unit: int = 1
    waits: int = 0
    pooled: bool = False
    caches: tuple[CodedCache, ...] = ()
