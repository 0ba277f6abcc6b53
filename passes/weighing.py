"""Weighing: attention over rows of which some stand for several.

A merged row counts as often as it is made of: ``softmax(q k' · scale + log sizes)``.  Behind the
cut, every attention of the stack gets the logarithm added to its logits, up to the next cut (which
has its own sizes).  Fused: to the mask, made where there was none; a bool mask becomes a float one.
Written out: in front of the softmax.  Rows of size 1 change nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.dims import arguments_of, describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.layout import Layout, layout_of
from tokopt.passes.workspace import Workspace


def weigh_layers(
    work: Workspace, stack: TokenStack, depths: range, lead: tuple[Axis, ...], sizes: fx.Node
) -> None:
    """Let the attention of some layers count key j ``sizes[:, j]`` times, fp32 ``[B, N]``.

    The sizes are those of the rows these layers have.
    """
    for layer in stack.stack.layers:
        if layer.depth not in depths:
            continue
        for attention in layer.attention:
            _refuse_other_keys(stack, attention, layer.windowed)
            shown = attention.query if attention.fused else attention.node
            layout = layout_of(shown, work.facts.dims, lead, -2, -1)
            with work.graph.inserting_before(attention.node):
                if attention.fused:
                    _into_mask(work, attention.node, layout, sizes)
                else:
                    _into_logits(work, attention.node, layout, sizes)


def _into_logits(work: Workspace, softmax: fx.Node, layout: Layout, sizes: fx.Node) -> None:
    def added(logits: Tensor, counts: Tensor) -> Tensor:
        bias = layout.put(counts.log().unsqueeze(1).unsqueeze(1), logits)
        return logits + bias.to(logits.dtype)

    logits = softmax.all_input_nodes[0]
    softmax.replace_input_with(logits, work.splice(added, [logits, sizes]))


def _into_mask(work: Workspace, fused: fx.Node, layout: Layout, sizes: fx.Node) -> None:
    given = arguments_of(fused)
    query, mask, causal = given["query"], given.get("attn_mask"), bool(given.get("is_causal"))

    def added(asked: Tensor, keys: Tensor, counts: Tensor, *masks: Tensor) -> Tensor:
        bias = layout.put(counts.log().unsqueeze(1).unsqueeze(1), asked).to(asked.dtype)
        for before in masks:
            if before.dtype == torch.bool:
                bias = torch.where(before, bias, float("-inf"))
            else:
                bias = before + bias
        if causal:
            line = torch.arange(asked.shape[-2], device=asked.device).unsqueeze(-1)
            later = torch.arange(keys.shape[-2], device=asked.device) > line
            bias = bias.masked_fill(later, float("-inf"))
        return bias

    made = work.splice(added, [query, given["key"], sizes, *([] if mask is None else [mask])])
    scale, grouped = given.get("scale"), bool(given.get("enable_gqa"))
    fused.args = (query, given["key"], given["value"], made, given.get("dropout_p", 0.0), False)
    fused.kwargs = {"scale": scale, "enable_gqa": grouped}


def _refuse_other_keys(stack: TokenStack, attention: Attention, windowed: bool) -> None:
    """Refuse attention whose keys are not the stream's rows: sizes are theirs."""
    place = locate(stack.stack.stream, attention.keys)
    if windowed or place is None or any(kind != "*" for kind, _, _ in place.path):
        raise UnsupportedError(
            "rows that stand for several are weighed in attention, and here keys are not the rows "
            f"of {stack.role}",
            where=describe(attention.node),
            hint="place the stage at the end of the stack, or use a method that does not merge",
        )
