"""Sparse line: what a manifest says of sparse decode, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def sparse_line(told: Mapping[str, Any]) -> str:
    """Return the fields of a ``SparseStep`` as a sentence."""
    full, select = (", ".join(map(str, told[name])) or "none" for name in ("full", "select"))
    note = f" ({told['note']})" if told["note"] else ""
    return (
        f"decode: {told['method']} from {told['rows']:,} rows on: full layers {full}; choosing "
        f"{select}; the others read {told['pages']} pages of {told['page']} rows, the last "
        f"{told['recent']} among them{note}"
    )
