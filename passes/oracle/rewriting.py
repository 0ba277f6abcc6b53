"""Rewriting: what rewrites of attention must compute, on the original at full length.

Told apart from the rewriter's way: taps come from the oracle's own run, dropped rows are marked and
not gone, and what a row reads is summed up an item and a row at a time and written to its entries.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.dims import Dims
from tokopt.ir.layers import Layer
from tokopt.ir.layout import layout_of
from tokopt.passes.methods.method import LAST_ROW, LayerTap
from tokopt.passes.oracle.interpreter import Around, Call
from tokopt.passes.oracle.placed import tower_nodes
from tokopt.passes.oracle.rows import stream_rows
from tokopt.passes.oracle.semantics.attention import for_query_heads
from tokopt.passes.oracle.sizes import Sizes
from tokopt.passes.oracle.taps import TapReader, watched
from tokopt.passes.oracle.tower import tower_tap
from tokopt.passes.oracle.visual import visual_rows
from tokopt.passes.rewrites.attended import Attended, Marking
from tokopt.passes.rewriting import Asked


class Rewriting:
    """The rewrites of a plan during one run of the interpreter.

    ``around`` says how the attentions are called; ``watched`` is what the interpreter is to keep;
    ``seen`` (set before the run) is where it keeps it; ``own`` holds the attention weights that
    layers had of their own where the graph spells them out: what stages read.
    """

    def __init__(self, asked: Sequence[Asked], dims: Dims, sizes: Sizes) -> None:
        self.dims, self.sizes = dims, sizes
        self.seen: Mapping[fx.Node, Any] = {}
        self.own: dict[fx.Node, Tensor] = {}
        self.around: dict[fx.Node, Around] = {}
        self.watched: set[fx.Node] = set()
        for one in asked:
            merge = one.stack.merge
            assert merge is not None
            self.watched |= {merge.mask, *merge.indices, merge.node}
            self.watched |= set() if one.feeder is None else tower_nodes(one.feeder, dims)
            for layer in one.layers:
                self.watched |= {layer.entry} | watched(layer.attention[0])
                self.around[layer.attention[0].node] = self._calling(one, layer)

    def _calling(self, one: Asked, layer: Layer) -> Around:
        attention = layer.attention[0]

        def around(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            result = call(args, kwargs)
            if not attention.fused:
                self.own[attention.node] = result
            return self._changed(one, layer, attention, result)

        return around

    def _changed(self, one: Asked, layer: Layer, attention: Attention, result: Tensor) -> Tensor:
        """Return what an attention gives with the rows that are asked about changed."""
        stack, rewrite = one.stack, one.rewrite
        seen: Mapping[fx.Node, Any] = ChainMap(self.own, self.seen)  # type: ignore[arg-type]
        rows = stream_rows(self.dims, layer.entry, stack.stack.dim, one.site.tokens, self.sizes)
        items = rows.items(seen[layer.entry])
        alive = ~items.isnan().all(-1)
        shape = (alive.shape[0], alive.shape[1])
        visual = visual_rows(stack, rows, shape, self.dims, seen, self.sizes)
        candidates = alive & visual
        candidates[:, -1] = False
        left = alive.nonzero()[:, 1].view(len(alive), -1)
        among = candidates.gather(1, left)
        tap = TapReader(self.dims, seen, rows.lead, left).layer(layer, attention)
        at = _asked_rows(rewrite.rows, tap, among)
        marks = None
        if rewrite.mark is not None:
            tower = None
            if one.feeder is not None:
                tower = tower_tap(one.feeder, self.dims, seen, visual, among, left)
            marks = rewrite.mark(Marking(among, tower, one.options))
        hidden = torch.stack([item[numbers] for item, numbers in zip(items, left, strict=True)])
        found = result.clone(memory_format=torch.contiguous_format)
        flat = found.view(-1)
        entries = torch.arange(flat.numel()).reshape(found.shape)
        shown = layout_of(attention.node, self.dims, rows.lead, -2, -1).apply(entries)
        values = for_query_heads(tap.value, tap.query)
        for item, numbers in enumerate(at):
            every = torch.tensor([numbers or [0]] * len(at))
            taps = Attended(tap, hidden, among, marks, every, one.options)
            made = rewrite.attend(taps)[item]
            for place, number in enumerate(numbers):
                row = shown[item, :, int(left[item, number])]
                if attention.fused:
                    flat[row] = (made[:, place, :, None] * values[item]).sum(1)
                else:
                    flat[row[:, left[item]]] = made[:, place]
        return found


def _asked_rows(which: str, tap: LayerTap, candidates: Tensor) -> list[list[int]]:
    """Return the rows of each item that are asked about, numbered among those alive."""
    if which == "last":
        number = tap.number(LAST_ROW)
        assert isinstance(number, Tensor)
        return [[int(row)] for row in number]
    found = []
    for item in candidates.tolist():
        visual = [row for row, is_visual in enumerate(item) if is_visual]
        found.append([*range(visual[-1] + 1, len(item))] if visual else [])
    return found
