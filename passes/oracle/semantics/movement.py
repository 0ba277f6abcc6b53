"""Movements: entries go elsewhere unchanged, and take their marks with them.

On floating-point tensors nothing has to be done: NaN is copied like any number.  For other dtypes
the same call is made once more on the masks.  Positions computed from dropped rows are refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import Marked, bury, dead_entries, has_dead
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.table import rule

ROWS = frozenset({"self", "tensors", "input", "source", "src", "values", "tensor"})
"""Arguments that hold the entries that move; all other arguments say where to."""

MOVING = """
view reshape _unsafe_view _reshape_alias flatten unflatten unsqueeze squeeze view_copy squeeze_copy
unsqueeze_copy view_as reshape_as expand expand_copy expand_as broadcast_to permute permute_copy
transpose transpose_copy swapaxes t t_copy mT numpy_T adjoint movedim moveaxis repeat tile
repeat_interleave roll flip rot90 slice slice_copy narrow narrow_copy select select_copy split
split_with_sizes chunk unsafe_split unsafe_chunk tensor_split split_copy unbind unbind_copy
index_select take_along_dim masked_select
slice_scatter select_scatter index_copy index_put _unsafe_index_put masked_scatter
unfold im2col pixel_shuffle pixel_unshuffle diagonal
"""


@rule(*MOVING.split())
def movement(call: Operation) -> Any:
    """Make the call; make it on the masks too where NaN cannot carry them."""
    shown = {"view_as", "reshape_as", "expand_as"}
    for name, value in call.given.items():
        if name not in ROWS and has_dead(value) and call.name not in shown:
            raise call.refuse(f"rows are moved to positions computed from them ({name})")
    if call.get("accumulate") or call.get("reduce") is not None:
        raise call.refuse("rows are added up at run-time positions")
    if not any(_is_marked(value) for value in call.given.values()):
        return call.run()
    return bury_each(call.run(), moved_masks(call))


def moved_masks(call: Operation) -> Any:
    """Return the masks of a call's results: the call made on its operands' masks."""
    masks = {name: _mask(value) for name, value in call.given.items() if name in ROWS}
    return call.run(masks | ({"value": 0} if "value" in call.given else {}))  # a constant is alive


def bury_each(values: Any, masks: Any) -> Any:
    """Return results (one, or a list) with the entries of their masks marked."""
    if isinstance(values, (list, tuple)):
        return type(values)(bury_each(v, m) for v, m in zip(values, masks, strict=True))
    return bury(values, masks)


def _is_marked(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_is_marked(element) for element in value)
    return isinstance(value, Marked)


def _mask(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_mask(element) for element in value]
    dead = dead_entries(value)
    if dead is None and isinstance(value, Tensor):
        return torch.zeros_like(value, dtype=torch.bool)
    return value if dead is None else dead


@rule("view_as_real")
def view_as_real(call: Operation) -> Any:
    """Make a dead pair of a dead complex number."""
    dead = call.dead("self")
    return bury(call.run(), None if dead is None else dead.unsqueeze(-1))


@rule("view_as_complex")
def view_as_complex(call: Operation) -> Any:
    """Make a dead complex number of a dead pair."""
    dead = call.dead("self")
    return bury(call.run(), None if dead is None else dead.any(-1))
