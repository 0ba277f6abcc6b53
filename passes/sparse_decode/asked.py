"""Asked: sparse decode in a person's words: ``delta``, ``delta{pages=32 from=2048}``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tokopt.ir.errors import InputError
from tokopt.ir.plan import SparseDecode
from tokopt.passes.option import read_settings
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.passes.syntax import read_calls

DELTA, FROM = "delta", "from"
NUMBERS = ("page", "pages", "recent", FROM)


@dataclass(frozen=True)
class Asked:
    """The pages, and ``rows``: from how many rows of a cache on; None where that is computed."""

    pages: Pages
    rows: int | None


def asked_sparse(text: str) -> Asked:
    """Return what a person asks for.  ``InputError`` for what there is not."""
    calls = read_calls(text)
    if len(calls) != 1:
        raise InputError(f"sparse decode {text!r}", expected=f"{DELTA} or {DELTA}{{pages=32}}")
    return _asked(calls[0].name, read_settings(calls[0]))


def planned_sparse(entry: SparseDecode) -> Asked:
    """Return the numbers of a plan's entry.  ``InputError`` for what there is not."""
    return _asked(entry.method, entry.options)


def _asked(method: str, options: Mapping[str, int | float | str]) -> Asked:
    if method != DELTA:
        raise InputError(f"there is no sparse decode {method!r}", expected=DELTA)
    for name, value in options.items():
        if name not in NUMBERS or not isinstance(value, int) or value < 1:
            raise InputError(
                f"{method}: {name}={value}",
                expected=", ".join(NUMBERS) + ", whole numbers of at least 1",
            )
    numbers = {name: int(value) for name, value in options.items()}
    rows = numbers.pop(FROM, None)
    numbers.setdefault("recent", min(Pages.recent, numbers.get("pages", Pages.pages)))
    return Asked(Pages(**numbers), rows)
