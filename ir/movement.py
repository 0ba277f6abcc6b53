"""Movement: what becomes of rows between a tower and the sequence they are written into.

Two kinds of operators stand there: those that move whole rows, and those that compute each row from
the same row.  Whoever follows rows (which of them arrive, which are holes) replays the first on
labels and lets the second pass the label on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

MOVES = frozenset(
    f"aten::{name}"
    for name in (
        "view reshape _unsafe_view flatten unflatten squeeze unsqueeze permute transpose t expand "
        "clone contiguous slice select split split_with_sizes unbind index index_select roll flip "
        "repeat cat stack alias _reshape_alias chunk movedim gather masked_scatter index_put"
    ).split()
)
"""Operators that move rows without changing them."""

PER_ROW = frozenset(
    f"aten::{name}"
    for name in "to _to_copy gelu silu relu mul add div layer_norm rms_norm dropout "
    "sub tanh sigmoid linear".split()
)
"""Operators whose result has, in each row, what was computed from that row."""

ANY_LAYOUT: Mapping[object, Callable[..., Any]] = {
    torch.ops.aten.view.default: torch.ops.aten.reshape.default,
    torch.ops.aten._unsafe_view.default: torch.ops.aten.reshape.default,
}
"""Movements that ask for a memory layout that data has and labels in its place may not have, and
what moves alike whatever the layout."""

SAME_VALUES = frozenset(
    f"aten::{name}" for name in "unsqueeze expand expand_as clone to _to_copy alias view_as".split()
)
"""Operators that leave every value where it is, or repeat it along a new dim."""
