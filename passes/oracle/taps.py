"""Taps: what a score reads, taken from the oracle's own run.

Captured values have the full length; a tap shows the rows alive now.  Attention of a row is what
the layer computed, over the keys it had then, read at the rows alive now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.dims import Dims
from tokopt.ir.errors import InternalError
from tokopt.ir.layers import Layer
from tokopt.ir.layout import layout_of
from tokopt.passes.methods.method import LayerTap
from tokopt.passes.oracle.dead import bare
from tokopt.passes.oracle.semantics.attention import bias_of, for_query_heads


def tapped(layer: Layer, tokens: Axis) -> Attention | None:
    """Return a layer's attention over all tokens; a windowed layer has none."""
    whole = [a for a in layer.attention if locate(a.keys, tokens) is not None]
    return whole[0] if len(whole) == len(layer.attention) == 1 else None


def watched(attention: Attention) -> set[fx.Node]:
    """Return the nodes whose values the taps of an attention are made of."""
    nodes = {attention.query, attention.key, attention.value, attention.node}
    return nodes | ({attention.mask} if attention.mask is not None else set())


def _crosses(attention: Attention) -> bool:
    """Return whether the queries are rows of another stream, which lose none."""
    return attention.queries.root is not attention.keys.root


@dataclass(frozen=True)
class TapReader:
    """Reads taps of layers: ``alive`` is ``[B, K]``, each item's rows that are left, ascending."""

    dims: Dims
    seen: Mapping[fx.Node, Any]
    lead: tuple[Axis, ...]
    alive: Tensor

    def layer(self, layer: Layer, attention: Attention) -> LayerTap:
        """Return the tap of a layer."""
        keys_last = not attention.fused and self._keys_last(attention)
        key = self._see(attention.key, *((-1, -2) if keys_last else (-2, -1)))
        query, value = self._see(attention.query), self._see(attention.value)
        row = self._fused_row(attention, query, key) if attention.fused else self._row(attention)
        scale = query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
        asked = query if _crosses(attention) else self._rows(query)
        return LayerTap(layer.depth, asked, self._rows(key), self._rows(value), row, scale)

    def _keys_last(self, attention: Attention) -> bool:
        return self.dims.axis(attention.key, -1) is attention.keys.root

    def _see(self, node: fx.Node, rows: int = -2, features: int = -1) -> Tensor:
        """Return a captured operand as ``[B, H, N, d]``, full length."""
        part = layout_of(node, self.dims, self.lead, rows, features).apply(self.seen[node])
        if part.shape[0] != len(self.alive):
            raise InternalError(
                f"{node.name} has {part.shape[0]} items, the stream {len(self.alive)}"
            )
        return part

    def _rows(self, part: Tensor) -> Tensor:
        index = self.alive[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3])
        return part.gather(2, index)

    def _at(self, full: Tensor) -> Tensor:
        """Return ``[B, H, N]`` at the rows alive."""
        return full.gather(2, self.alive[:, None].expand(-1, full.shape[1], -1))

    def _one(self, full: Tensor, q: int, attention: Attention) -> Tensor:
        """Return query row ``q`` of those alive of ``[B, H, N, X]``: ``[B, H, X]``."""
        if _crosses(attention):
            return full[:, :, q]
        items = torch.arange(len(full), device=full.device)
        return full[items, :, self.alive[:, q]]

    def _row(self, attention: Attention) -> Callable[[int], Tensor]:
        """Return the reader of probabilities that the graph spells out."""
        probabilities = self._see(attention.node)
        return lambda q: self._at(self._one(probabilities, q, attention)).float()

    def _fused_row(
        self, attention: Attention, query: Tensor, key: Tensor
    ) -> Callable[[int], Tensor]:
        """Return the reader of probabilities hidden in a fused call."""
        mask = None if attention.mask is None else bare(self.seen[attention.mask])
        whole = self.seen[attention.query]
        shape = torch.Size((*whole.shape[:-1], key.shape[2]))
        bias = bias_of(mask, attention.causal, shape, query.device).expand(shape)
        layout = layout_of(attention.query, self.dims, self.lead, -2, -1)
        seen_bias = layout.apply(bias)
        scale = query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
        keys = for_query_heads(key, query)

        def row(q: int) -> Tensor:
            asked = self._one(query, q, attention)
            scores = (asked[:, :, None] * keys.nan_to_num(0.0)).sum(-1) * scale
            scores = scores + self._one(seen_bias, q, attention)
            scores = scores.masked_fill(keys.isnan().all(-1), -torch.inf)
            return self._at(scores.softmax(-1)).float()

        return row
