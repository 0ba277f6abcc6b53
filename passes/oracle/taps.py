"""Taps: what a score reads, taken from the oracle's own run.

Captured values have the full length; a tap shows the rows alive now.  Attention of a row is what
the layer computed, over the keys it had then, read at the rows alive now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.dims import Dims
from tokopt.ir.errors import InternalError
from tokopt.ir.layers import Layer
from tokopt.ir.layout import layout_of
from tokopt.ir.lengths import same_length
from tokopt.passes.methods.method import LAST_ROW, LayerTap
from tokopt.passes.oracle.dead import bare
from tokopt.passes.oracle.semantics.attention import bias_of, for_query_heads

FAINT = -100.0
"""Added to a score, this or less is a weight of 0."""


def tapped(layer: Layer, tokens: Axis) -> Attention | None:
    """Return a layer's attention over all tokens; one in windows, or of pooled rows, has none."""
    whole = [a for a in layer.attention if locate(a.keys, tokens) is not None]
    if len(layer.attention) != 1 or not whole:
        return None
    asked = locate(whole[0].queries, tokens) is not None  # else rows of another stream ask
    pooled = asked and not same_length(whole[0].queries.length, whole[0].keys.length)
    return None if pooled else whole[0]


def watched(attention: Attention) -> set[fx.Node]:
    """Return the nodes whose values the taps of an attention are made of."""
    nodes = {attention.query, attention.key, attention.value, attention.node}
    return nodes | ({attention.mask} if attention.mask is not None else set())


def _crosses(attention: Attention) -> bool:
    """Return whether the queries are rows of another stream, which lose none."""
    return attention.queries.root is not attention.keys.root


@dataclass(frozen=True)
class TapReader:
    """Reads taps of layers: ``alive`` is ``[B, K]``, each item's rows that are left, ascending.

    ``weights``: by attention, how many rows each key stood for in it, ``[B, N]``, where several.
    """

    dims: Dims
    seen: Mapping[fx.Node, Any]
    lead: tuple[Axis, ...]
    alive: Tensor
    weights: Mapping[fx.Node, Tensor] = field(default_factory=dict)

    def layer(self, layer: Layer, attention: Attention) -> LayerTap:
        """Return the tap of a layer."""
        keys_last = not attention.fused and self._keys_last(attention)
        key = self._see(attention.key, *((-1, -2) if keys_last else (-2, -1)))
        query, value = self._see(attention.query), self._see(attention.value)
        if attention.fused:
            bias = self._bias(attention, key.shape[2])
            last = self._last(bias > FAINT)
            row = self._fused_row(attention, query, key, bias, last)
        else:
            probabilities = self._see(attention.node)
            last = self._last(probabilities > 0)
            row = self._row(attention, probabilities, last)

        def each(at: Tensor) -> Tensor:
            """Return several rows, an item and a row at a time."""
            items = [
                torch.stack([row(q)[item] for q in numbers], dim=1)
                for item, numbers in enumerate(at.tolist())
            ]
            return torch.stack(items)

        scale = query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
        rows = query if _crosses(attention) else self._rows(query), self._rows(key)
        among = (self.alive < last[:, None]).sum(1)
        return LayerTap(layer.depth, *rows, self._rows(value), row, scale, among, each)

    def shape(self, attention: Attention) -> tuple[int, int]:
        """Return how many items and rows an attention's values have."""
        value = self._unchecked(attention.value)
        return value.shape[0], value.shape[2]

    def reads_itself(self, attention: Attention) -> Tensor:
        """Return which rows may read themselves in some head, bool ``[B, N]``: no padding does."""
        if attention.fused:
            key = self._see(attention.key)
            readable = self._bias(attention, key.shape[2]) > FAINT
        else:
            readable = self._see(attention.node) > 0
        return readable.diagonal(dim1=2, dim2=3).any(1)

    def _keys_last(self, attention: Attention) -> bool:
        return self.dims.axis(attention.key, -1) is attention.keys.root

    def _see(self, node: fx.Node, rows: int = -2, features: int = -1) -> Tensor:
        """Return a captured operand as ``[B, H, N, d]``, full length."""
        part = self._unchecked(node, rows, features)
        if part.shape[0] != len(self.alive):
            raise InternalError(
                f"{node.name} has {part.shape[0]} items, the stream {len(self.alive)}"
            )
        return part

    def _unchecked(self, node: fx.Node, rows: int = -2, features: int = -1) -> Tensor:
        return layout_of(node, self.dims, self.lead, rows, features).apply(self.seen[node])

    def _rows(self, part: Tensor) -> Tensor:
        index = self.alive[:, None, :, None].expand(-1, part.shape[1], -1, part.shape[3])
        return part.gather(2, index)

    def _at(self, full: Tensor) -> Tensor:
        """Return ``[B, H, N]`` at the rows alive."""
        return full.gather(2, self.alive[:, None].expand(-1, full.shape[1], -1))

    def _last(self, readable: Tensor) -> Tensor:
        """Return each item's last row alive that reads itself in some head of ``[B, H, Q, N]``.

        Padding reads and is read by nobody; where all is padding, or rows are asked by others, the
        last row alive.
        """
        if readable.shape[2] != readable.shape[3]:
            return self.alive[:, -1]
        own = readable.diagonal(dim1=2, dim2=3).any(1).gather(1, self.alive)
        lasts = [rows[real].tolist() for rows, real in zip(self.alive, own, strict=True)]
        ends = self.alive[:, -1].tolist()
        found = [rows[-1] if rows else end for rows, end in zip(lasts, ends, strict=True)]
        return torch.tensor(found, device=self.alive.device)

    def _one(self, full: Tensor, q: int, attention: Attention, last: Tensor) -> Tensor:
        """Return query row ``q`` of those alive of ``[B, H, N, X]``: ``[B, H, X]``."""
        if _crosses(attention):
            return full[:, :, q]
        items = torch.arange(len(full), device=full.device)
        return full[items, :, last if q == LAST_ROW else self.alive[:, q]]

    def _row(
        self, attention: Attention, probabilities: Tensor, last: Tensor
    ) -> Callable[[int], Tensor]:
        """Return the reader of probabilities that the graph spells out."""
        return lambda q: self._at(self._one(probabilities, q, attention, last)).float()

    def _bias(self, attention: Attention, keys: int) -> Tensor:
        """Return what a fused call adds to its scores, ``[B, H, Q, N]``."""
        mask = None if attention.mask is None else bare(self.seen[attention.mask])
        whole = self.seen[attention.query]
        shape = torch.Size((*whole.shape[:-1], keys))
        bias = bias_of(mask, attention.causal, shape, whole.device).expand(shape)
        return layout_of(attention.query, self.dims, self.lead, -2, -1).apply(bias)

    def _fused_row(
        self, attention: Attention, query: Tensor, key: Tensor, bias: Tensor, last: Tensor
    ) -> Callable[[int], Tensor]:
        """Return the reader of probabilities hidden in a fused call."""
        scale = query.shape[-1] ** -0.5 if attention.scale is None else attention.scale
        keys = for_query_heads(key, query)

        def row(q: int) -> Tensor:
            asked = self._one(query, q, attention, last)
            scores = (asked[:, :, None] * keys.nan_to_num(0.0)).sum(-1) * scale
            scores = scores + self._one(bias, q, attention, last)
            scores = scores.masked_fill(keys.isnan().all(-1), -torch.inf)
            weights = scores.softmax(-1)
            if attention.node in self.weights:
                weights = weights * self.weights[attention.node][:, None]
                weights = weights / weights.sum(-1, keepdim=True)
            return self._at(weights).float()

        return row
