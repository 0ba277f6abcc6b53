"""Taps: one attention layer of a stack in the one form that scores read, ``[B, H, N, d]``.

``values`` maps graph nodes to tensors: real ones of a recorded run, or those of a trace.  Windowed
layers (one attention per window) are joined: operands along the rows, and a row attends to its own
window only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.layers import Layer
from tokopt.ir.layout import layout_of
from tokopt.ir.logit_scale import logit_scale
from tokopt.ir.stream import lead_axes, row_axis
from tokopt.passes.methods.method import LayerTap
from tokopt.passes.methods.rows import attention_row

Values = Mapping[fx.Node, Tensor]


def tapped_nodes(layer: Layer) -> list[fx.Node]:
    """Return the nodes whose values ``layer_tap`` reads."""
    nodes: list[fx.Node] = []
    for site in layer.attention:
        hidden = [site.mask] if site.fused else [site.node]
        nodes += [n for n in (site.query, site.key, site.value, *hidden) if n is not None]
    return nodes


def layer_tap(facts: Facts, stack: TokenStack, layer: Layer, values: Values) -> LayerTap:
    """Return a layer's tap.  Raises ``UnsupportedError`` where its windows have no order."""
    parts = [_attention_tap(facts, stack, layer.depth, s, values) for s in _ordered(stack, layer)]
    if len(parts) == 1:
        return parts[0]
    query, key, value = (
        torch.cat(operands, 2)
        for operands in zip(*((p.query, p.key, p.value) for p in parts), strict=True)
    )
    return LayerTap(layer.depth, query, key, value, _row_in_windows(parts), parts[0].scale)


def _attention_tap(
    facts: Facts, stack: TokenStack, depth: int, site: Attention, values: Values
) -> LayerTap:
    lead = lead_axes(facts, stack)

    def see(node: fx.Node, rows: int, features: int) -> Tensor:
        return layout_of(node, facts.dims, lead, rows, features).apply(values[node])

    query, value = see(site.query, -2, -1), see(site.value, -2, -1)
    key = see(site.key, -2, -1) if site.fused else see(site.key, -1, -2)
    scale = logit_scale(site)

    def row(number: int) -> Tensor:
        if not site.fused:
            return see(site.node, -2, -1)[:, :, number].float()
        mask = None
        if site.mask is not None:
            given = values[site.mask]
            line = given[..., number : number + 1 or None, :] if given.shape[-2] != 1 else given
            shape = (*values[site.query].shape[:-2], 1, values[site.key].shape[-2])
            layout = layout_of(site.query, facts.dims, lead, -2, -1)
            mask = layout.apply(line.expand(shape))
        return attention_row(query, key, mask, number, scale, site.causal)

    return LayerTap(depth, query, key, value, row, scale)


def _row_in_windows(parts: list[LayerTap]) -> Callable[[int], Tensor]:
    def row(number: int) -> Tensor:
        left = number % sum(p.query.shape[2] for p in parts)
        found: list[Tensor] = []
        for part in parts:
            rows = part.query.shape[2]
            if 0 <= left < rows:
                found.append(part.row(left))
            else:
                found.append(torch.zeros_like(part.query[..., 0], dtype=torch.float32))
            left -= rows
        return torch.cat(found, -1)

    return row


def _ordered(stack: TokenStack, layer: Layer) -> list[Attention]:
    """Return the attentions of a layer in the order of their rows in the stream."""
    if not layer.windowed:
        return list(layer.attention)
    leaves = [leaf.root for leaf in row_axis(stack).leaves()]
    windows = {id(site.queries.root): site for site in layer.attention}
    if {id(leaf) for leaf in leaves} != set(windows):
        raise UnsupportedError(
            f"layer {layer.depth} attends in windows that are not runs of the stream's rows",
            where=layer.entry.name,
        )
    return [windows[id(leaf)] for leaf in leaves]
