"""Taps: what methods read of an attention, in one form for every way a graph writes attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims, arguments_of
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layers import Layer
from tokopt.ir.layout import Layout, layout_of
from tokopt.passes.methods.method import CLASS_ROW, LAST_ROW, LayerTap
from tokopt.passes.methods.rows import attention_row


@dataclass(frozen=True)
class TapRecipe:
    """How to make a layer's tap from the values of ``nodes``, real, fake or traced."""

    depth: int
    attention: Attention
    query: Layout
    key: Layout
    value: Layout
    probabilities: Layout

    @property
    def nodes(self) -> list[fx.Node]:
        """The graph values that ``build`` takes, in order."""
        site = self.attention
        if not site.fused:
            return [site.query, site.key, site.value, site.node]
        given = arguments_of(site.node)  # as they are now: earlier cuts replace operands
        mask = given.get("attn_mask")
        return [given["query"], given["key"], given["value"], *([mask] if mask else [])]

    def build(self, tensors: Sequence[Tensor], left: Tensor | None = None) -> LayerTap:
        """Return the tap; only what a method reads of it is computed.

        ``left``: int64 ``[B, K]``, the rows still there where rows went after this layer.  The tap
        then shows those; the first and the last row (the relays) must be among them, unless the
        queries of a cross-attention are of another stream and stay as they are.
        """
        whole = self._whole(tensors)
        if left is None:
            return whole
        crossing = self.attention.queries.root is not self.attention.keys.root
        query = whole.query if crossing else _rows(whole.query, left)
        key, value = _rows(whole.key, left), _rows(whole.value, left)

        def row(at: int) -> Tensor:
            if at not in (CLASS_ROW, LAST_ROW) and not crossing:
                raise UnsupportedError(f"row {at} of a layer that lies before an earlier stage")
            attention = whole.row(at)
            return attention.gather(2, left.unsqueeze(1).expand(-1, attention.shape[1], -1))

        return LayerTap(self.depth, query, key, value, row, whole.scale)

    def _whole(self, tensors: Sequence[Tensor]) -> LayerTap:
        raw_query, raw_key, raw_value, *rest = tensors
        query, key = self.query.apply(raw_query), self.key.apply(raw_key)
        value = self.value.apply(raw_value)
        site = self.attention
        scale = query.shape[-1] ** -0.5 if site.scale is None else site.scale

        def row(at: int) -> Tensor:
            if not site.fused:
                shown = self.probabilities.apply(_row(rest[0], at))
                return shown.select(2, 0).float()
            mask = None
            if rest:
                shape = [*raw_query.shape[:-2], 1, raw_key.shape[-2]]
                mask = self.probabilities.apply(_row(rest[0], at).expand(shape)).select(2, 0)
            return attention_row(query, key, mask, at, scale, site.causal)

        return LayerTap(self.depth, query, key, value, row, scale)


def tap_recipe(layer: Layer, dims: Dims, lead: tuple[Axis, ...]) -> TapRecipe | None:
    """Return a layer's recipe; None where it attends in windows (no row sees all rows)."""
    if layer.windowed:
        return None
    site = layer.attention[0]
    key_rows = -2 if site.fused else -1
    out = site.query if site.fused else site.node
    return TapRecipe(
        layer.depth,
        site,
        layout_of(site.query, dims, lead, -2, -1),
        layout_of(site.key, dims, lead, key_rows, -3 - key_rows),
        layout_of(site.value, dims, lead, -2, -1),
        layout_of(out, dims, lead, -2, -1),
    )


def _rows(operand: Tensor, left: Tensor) -> Tensor:
    """Return the rows ``left`` of ``[B, H, N, d]``."""
    index = left.unsqueeze(1).unsqueeze(-1)
    return operand.gather(2, index.expand(-1, operand.shape[1], -1, operand.shape[3]))


def _row(tensor: Tensor, at: int) -> Tensor:
    """Return query row ``at`` of ``[…, Q, N]``, its dim kept; a broadcast dim is left alone."""
    if tensor.dim() < 2 or tensor.shape[-2] == 1:
        return tensor
    return tensor.narrow(-2, at if at >= 0 else tensor.shape[-2] + at, 1)
