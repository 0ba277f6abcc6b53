"""Asked: the formats of a cache in a person's words: ``int8``, ``int8/int4``, 8 bits, ``auto``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokopt.ir.errors import InputError
from tokopt.passes.kv.format import Side
from tokopt.passes.kv.registry import find_format
from tokopt.passes.option import read_settings
from tokopt.passes.syntax import read_calls

BITS = {16: "half", 8: "int8", 4: "int4", 2: "kivi"}
"""The format of so many bits: of 2 that of rows in blocks, whose scales make it 3."""

AUTO = "auto"
"""Not a format: as few bits as leave the next token as it is, layer by layer."""


@dataclass(frozen=True)
class Auto:
    """``auto{bits=4}``: no fewer than ``bits``; 2 is for caches of many rows, and no kernel's.

    ``tokens``: the share of a prompt's rows that the smallest budget leaves, or may.  ``apart``:
    keys and values of a layer may be in different formats.  ``further``: fewer bits than that are
    choices of a search.
    """

    bits: int = 4
    tokens: float = 1.0
    apart: bool = False
    further: bool = False


def of_bits(said: str) -> str:
    """Return the format of so many bits a value, or ``auto``.  ``InputError`` names the others."""
    if _is_auto(said):
        return said
    bits = int(said) if said.isdecimal() else 0
    if bits not in BITS:
        raise InputError(
            f"a cache of {said} bits",
            expected="one of " + ", ".join(map(str, (*BITS, AUTO))),
        )
    return BITS[bits]


def asked_formats(text: str) -> Mapping[Side, str] | Auto:
    """Return the format of keys and that of values: ``int8``, or ``int8/int4``; or ``auto``.

    Raises ``InputError`` for a format there is not.
    """
    if _is_auto(text):
        return _auto(text)
    names = text.split("/")
    if len(names) > 2:
        raise InputError(f"cache formats {text!r}", expected="one, or that of keys / of values")
    for name in names:
        find_format(name)
    return {"key": names[0], "value": names[-1]}


def _is_auto(text: str) -> bool:
    return text.partition("{")[0] == AUTO


def _auto(text: str) -> Auto:
    settings = [read_settings(call) for call in read_calls(text)]
    given = settings[0] if len(settings) == 1 else {"": text}
    bits = given.get("bits", Auto.bits)
    if given.keys() - {"bits"} or bits not in BITS:
        raise InputError(
            f"a cache of {text!r} bits",
            expected="auto, or auto{bits=N} with N one of " + ", ".join(map(str, BITS)),
        )
    return Auto(int(bits))
