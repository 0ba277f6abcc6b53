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
from tokopt.passes.last_row import (
    last_by_mask,
    last_by_probabilities,
    line,
    reads_input_values,
)
from tokopt.passes.methods.method import CLASS_ROW, LAST_ROW, LayerTap
from tokopt.passes.methods.rows import at_row, attention_row, attention_rows


@dataclass(frozen=True)
class TapRecipe:
    """How to make a layer's tap from the values of ``nodes``, real, fake or traced."""

    depth: int
    attention: Attention
    query: Layout
    key: Layout
    value: Layout
    probabilities: Layout
    padded: bool

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
        last = None if whole.last is None else (left < whole.last.unsqueeze(-1)).sum(-1)

        def row(at: int) -> Tensor:
            if at not in (CLASS_ROW, LAST_ROW) and not crossing:
                raise UnsupportedError(f"row {at} of a layer that lies before an earlier stage")
            attention = whole.row(at)
            return attention.gather(2, left.unsqueeze(1).expand(-1, attention.shape[1], -1))

        def rows(at: Tensor) -> Tensor:
            assert whole.rows is not None
            attention = whole.rows(at if crossing else left.gather(1, at))
            index = left.unsqueeze(1).unsqueeze(1)
            return attention.gather(3, index.expand(-1, *attention.shape[1:3], -1))

        return LayerTap(self.depth, query, key, value, row, whole.scale, last, rows)

    def _whole(self, tensors: Sequence[Tensor]) -> LayerTap:
        raw_query, raw_key, raw_value, *rest = tensors
        query, key = self.query.apply(raw_query), self.key.apply(raw_key)
        value = self.value.apply(raw_value)
        site = self.attention
        scale = query.shape[-1] ** -0.5 if site.scale is None else site.scale

        lasts = last = None
        if self.padded and site.fused:  # as the mask has it, which may be for all items or heads
            lasts = last_by_mask(rest[0])
            alike = lasts.unsqueeze(-1).unsqueeze(-1).expand([*raw_query.shape[:-2], 1, 1])
            last = self.probabilities.apply(alike).amax((1, 2, 3))
        elif self.padded:
            last = last_by_probabilities(self.probabilities.apply(rest[0]))

        def row(at: int) -> Tensor:
            own = last if last is not None and at == LAST_ROW else None
            if not site.fused and own is not None:
                return at_row(self.probabilities.apply(rest[0]), own).float()
            if not site.fused:
                shown = self.probabilities.apply(_row(rest[0], at))
                return shown.select(2, 0).float()
            mask = None
            if rest:
                shape = [*raw_query.shape[:-2], 1, raw_key.shape[-2]]
                chosen = _row(rest[0], at)
                if own is not None and lasts is not None:
                    chosen = line(rest[0], lasts)
                mask = self.probabilities.apply(chosen.expand(shape)).select(2, 0)
            return attention_row(query, key, mask, at if own is None else own, scale, site.causal)

        def rows(at: Tensor) -> Tensor:
            if not site.fused:
                return _lines(self.probabilities.apply(rest[0]), at).float()
            mask = None
            if rest:
                shape = [*raw_query.shape[:-1], raw_key.shape[-2]]
                mask = _lines(self.probabilities.apply(self._spread(rest[0], shape)), at)
            return attention_rows(query, key, mask, at, scale, site.causal)

        return LayerTap(self.depth, query, key, value, row, scale, last, rows)

    def _spread(self, mask: Tensor, shape: list[int]) -> Tensor:
        """Return a mask that the layout can be applied to: only where it must, all of ``shape``.

        A mask for all heads then stays one: spread over them it is the largest value there is.
        """
        layout = self.probabilities
        if layout.sizes is not None or len(layout.heads) > 1 or len(layout.batch) > 1:
            return mask.expand(shape)
        missing = len(shape) - mask.dim()
        return mask[(None,) * missing] if missing else mask


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
        may_be_padded(site, dims),
    )


def may_be_padded(site: Attention, dims: Dims) -> bool:
    """Return whether which rows an attention may read is data: a mask that reads an input.

    An attention that is spelled out may have such a mask; its probabilities tell.
    """
    if site.queries.root is not site.keys.root:
        return False
    if not site.fused:
        return True
    mask = site.mask
    return mask is not None and len(mask.meta["val"].shape) > 1 and reads_input_values(mask, dims)


def _rows(operand: Tensor, left: Tensor) -> Tensor:
    """Return the rows ``left`` of ``[B, H, N, d]``."""
    index = left.unsqueeze(1).unsqueeze(-1)
    return operand.gather(2, index.expand(-1, operand.shape[1], -1, operand.shape[3]))


def _lines(matrix: Tensor, at: Tensor) -> Tensor:
    """Return the lines ``at`` ``[B, T]`` of ``[B, H, Q, N]``, as ``[B, H, T, N]``.

    A matrix for all items or all queries, ``[1, H, Q, N]`` or ``[B, H, 1, N]``, is not spread.
    """
    if matrix.shape[2] == 1:
        return matrix
    if matrix.shape[0] == 1:
        lines = matrix.squeeze(0).index_select(1, at.flatten())
        return lines.unflatten(1, (at.shape[0], at.shape[1])).movedim(1, 0)
    index = at.unsqueeze(1).unsqueeze(-1)
    return matrix.gather(2, index.expand(-1, matrix.shape[1], -1, matrix.shape[3]))


def _row(tensor: Tensor, at: int) -> Tensor:
    """Return query row ``at`` of ``[…, Q, N]``, its dim kept; a broadcast dim is left alone."""
    if tensor.dim() < 2 or tensor.shape[-2] == 1:
        return tensor
    return tensor.narrow(-2, at if at >= 0 else tensor.shape[-2] + at, 1)
