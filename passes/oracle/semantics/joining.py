"""Joining: tensors side by side along a dim, old or new.

Along a dim that counts rows every operand brings rows of its own, and each keeps its mark.  Along
any other dim (features, hidden states of several layers) the operands are parts of the *same* rows:
where one lacks a row, the joined row does not exist.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import bare, bury, dead_entries, either
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.movement import movement
from tokopt.passes.oracle.semantics.table import rule


@rule("cat", "concat", "concatenate")
def cat(call: Operation) -> Any:
    """Join along a dim there is."""
    operands, dim = call.get("tensors"), call.get("dim")
    masks = [dead_entries(operand) for operand in operands]
    if call.counts_rows(call.node, dim) or any(_differs_along(mask, dim) for mask in masks):
        return movement(call)
    lines = [None if mask is None else mask.any(dim, keepdim=True) for mask in masks]
    return bury(call.run(), either(*lines))


@rule("stack")
def stack(call: Operation) -> Any:
    """Join along a new dim."""
    dim = call.get("dim")
    if call.counts_rows(call.node, dim):
        return movement(call)
    dead = either(*(dead_entries(operand) for operand in call.get("tensors")))
    result = call.run()
    return bury(result, None if dead is None else dead.unsqueeze(dim))


@rule("constant_pad_nd", "pad")
def pad(call: Operation) -> Any:
    """Put constants around: new rows are alive, new features of a dropped row are not."""
    if call.name == "pad" and call.get("mode") != "constant":
        raise call.refuse("rows are repeated at the border by position")
    tensor, dead, amounts = bare(call.get("self")), dead_entries(call.get("self")), call.get("pad")
    assert dead is not None, "a rule is called only where an operand has dead entries"
    moved: Tensor = torch.ops.aten.constant_pad_nd.default(dead, amounts, 0)
    padded = [tensor.ndim - 1 - i // 2 for i, amount in enumerate(amounts) if amount]
    dims = tuple({dim for dim in padded if not call.counts_rows(call.node, dim)})
    if dims:
        had = prod(tensor.shape[dim] for dim in dims)
        moved = moved | (moved.sum(dims, keepdim=True) == had)
    return bury(call.run(), moved)


def _differs_along(mask: Tensor | None, dim: int) -> bool:
    return mask is not None and bool((mask.any(dim) != mask.all(dim)).any())
