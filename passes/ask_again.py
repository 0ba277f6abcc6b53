"""Ask again: what a fused attention gives for other values, without its weights written out."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.dims import arguments_of
from tokopt.ir.layout import Layout
from tokopt.passes.operands import Operands
from tokopt.passes.rewrites.attended import Attended
from tokopt.passes.rewrites.scaling import Scaling
from tokopt.passes.workspace import Workspace


def ask_again(
    work: Workspace,
    attention: Attention,
    layout: Layout,
    scaling: Scaling,
    attended: Callable[[tuple[Tensor, ...]], Attended],
    operands: Operands,
) -> list[fx.Node]:
    """Insert the fused operator again, in fp32, for each of the values that a scaling asks for."""
    given = arguments_of(attention.node)
    like = operands.slot(given["value"])

    def asked(*tensors: Tensor) -> list[Tensor]:
        return [layout.put(v, like(tensors)) for v in scaling.asked(attended(tensors))]

    values = work.splice(asked, operands.nodes)
    wide = {key: _in_full(work, given[key]) for key in ("query", "key")}
    if isinstance(given.get("attn_mask"), fx.Node):
        wide["attn_mask"] = _in_full(work, given["attn_mask"])
    rest = {key: given[key] for key in ("is_causal", "scale", "enable_gqa") if key in given}
    target = attention.node.target
    return [
        work.call(target, wide["query"], wide["key"], value, wide.get("attn_mask"), 0.0, **rest)
        for value in values
    ]


def _in_full(work: Workspace, node: fx.Node) -> fx.Node:
    """Return a value in fp32; a mask of truth values as it is."""
    if node.meta["val"].dtype in (torch.float32, torch.bool):
        return node
    return work.call(torch.ops.aten.to.dtype, node, torch.float32)
