"""Rewrite: a published change of what a decoder's attention weighs; no row is dropped.

A rewrite = taps + one pure function from a layer's attention to other attention.  The compiler
traces it into the graph, the oracle calls it on its own tensors.  Shapes: B batch, H heads, N rows
of the stream now, T rows whose attention changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.methods.method import LAST_ROW, LayerTap
from tokopt.passes.rewrites.attended import Attended, Marking
from tokopt.passes.rewrites.scaling import Scaling


@dataclass(frozen=True)
class Rewrite:
    """One rewrite: its name is its file's name.

    ``attend`` returns the new attention of the rows asked, fp32 ``[B, H, T, N]``, each row of sum
    1.  ``rows``: it changes that of the last row of the prompt (``"last"``; padding is none), or
    of all rows behind the last visual one (``"behind"``; all are asked).  ``mark`` is computed
    once for layers that have the same rows.  ``scaling``: ``attend`` in the form that needs no
    attention written out.  ``first`` is the published first layer.
    ``neutral``: options under which nothing changes.  ``needs``, ``licence`` and ``cost`` are as in
    ``Method``; ``mark`` may read the tower where it needs ``"tower"``.
    """

    name: str
    paper: str
    roles: frozenset[str]
    rows: Literal["last", "behind"]
    attend: Callable[[Attended], Tensor]
    first: int
    options: Mapping[str, int | float | str]
    neutral: Mapping[str, int | float | str]
    notes: str
    mark: Callable[[Marking], Tensor] | None = None
    scaling: Scaling | None = None
    needs: frozenset[str] = frozenset({"layers"})
    licence: str = ""
    cost: str = ""

    def settings(self, options: Mapping[str, int | float | str]) -> Mapping[str, int | float | str]:
        """Return all options.

        Raises ``InputError`` for one that the rewrite does not have, or of another type.
        """
        return checked_options(self.name, self.options, options)


def checked_options(
    rewrite: str,
    known: Mapping[str, int | float | str],
    options: Mapping[str, int | float | str],
) -> Mapping[str, int | float | str]:
    """Return all options of a rewrite.

    Raises ``InputError`` for one that it does not have, or of another type.
    """
    for name, value in options.items():
        if name not in known:
            raise InputError(
                f"{rewrite} has no option {name!r}", expected="one of " + ", ".join(known)
            )
        if isinstance(value, str) != isinstance(known[name], str):
            what = "a text" if isinstance(known[name], str) else "a number"
            raise InputError(f"{rewrite}: {name} = {value!r}", expected=what)
    return {**known, **options}


def last_rows(layer: LayerTap) -> Tensor:
    """Return each item's last row that is no padding, int64 ``[B, 1]``."""
    number = layer.number(LAST_ROW)
    if isinstance(number, int):
        rows = layer.query.new_full((layer.query.shape[0], 1), layer.query.shape[2] - 1)
        return rows.long()
    return number.unsqueeze(-1)


def rows_behind(candidates: Tensor) -> Tensor:
    """Return which rows stand behind an item's last visual one, bool ``[B, N]``."""
    seen = candidates.long().flip(1).cumsum(1).flip(1)
    return (seen == 0) & candidates.any(1, keepdim=True)
