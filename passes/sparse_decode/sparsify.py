"""Sparsify: a decode step whose sparse layers read the rows that a layer in front of them chose.

A choosing layer stays as it is, and what it attends to is scored beside it.  A sparse layer gathers
chosen rows out of its caches as they came in and puts the new row behind them: the cache with all
rows is still given back, and no layer drops any.  The choice of each choosing layer, page numbers
``[B, pages]``, is a further output.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import fx
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram

from tokopt.ir.cache import Grown
from tokopt.ir.cache_reads import CacheRead, find_cache_reads
from tokopt.ir.rebuilt import draft_of
from tokopt.ir.trace import call, fake_mode_of, splice
from tokopt.passes.apply_plan import with_outputs
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.pages import (
    Pages,
    chosen_pages,
    headed,
    joined,
    narrowed,
    places,
    present,
    row_scores,
    rows_of,
)

aten = torch.ops.aten


def sparsify(
    decode: ExportedProgram, caches: Collection[str], groups: Groups, pages: Pages
) -> ExportedProgram:
    """Return decode with sparse layers; ``caches`` names its inputs that grow.

    ``decode`` is in normal form; its outputs stay, and behind them come the chosen pages of every
    layer of ``groups.select``, in order.  Raises what ``find_cache_reads`` does.
    """
    draft = draft_of(decode)
    graph, mode = draft.graph, fake_mode_of(draft.graph)
    reads = find_cache_reads(draft, caches)
    rows: dict[int, fx.Node] = {}
    chosen = []
    for depth in groups.select:
        found = _choice(graph, reads[depth], pages, mode)
        chosen.append(found)
        with graph.inserting_before(reads[depth].node):
            rows[depth] = splice(graph, partial(rows_of, page=pages.page), [found], mode)
    for depth, source in groups.source.items():
        _narrow(graph, reads[depth], rows[source], mode)
    return with_outputs(draft, graph, chosen)


def _choice(graph: fx.Graph, read: CacheRead, pages: Pages, mode: FakeTensorMode) -> fx.Node:
    def choose(query: torch.Tensor, keys: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
        scores = row_scores(query, keys, mask[0] if mask else None, read.scale)
        return chosen_pages(scores, pages)

    given = [read.query, read.key.node, *([] if read.mask is None else [read.mask])]
    with graph.inserting_before(read.node):
        found: fx.Node = splice(graph, choose, given, mode)
    return found


def _narrow(graph: fx.Graph, read: CacheRead, rows: fx.Node, mode: FakeTensorMode) -> None:
    heads = int(read.query.meta["val"].shape[1])
    with graph.inserting_before(read.node):
        there = splice(graph, present, [rows, read.key.past], mode)
        where = splice(graph, places, [rows, there, read.key.past], mode)
        sides = []
        for side in (read.key, read.value):
            flat = call(graph, aten.reshape.default, side.past, [-1, _width(side)], mode=mode)
            few = call(graph, aten.index_select.default, flat, 0, where, mode=mode)
            few = splice(graph, headed, [few, rows], mode)
            sides.append(splice(graph, partial(joined, heads=heads), [few, side.new], mode))
        given = [there, rows, *([] if read.mask is None else [read.mask])]
        mask = splice(graph, _narrowed, given, mode)
        attended = call(
            graph,
            aten.scaled_dot_product_attention.default,
            *(read.query, *sides, mask, 0.0, False),
            scale=read.scale,
            mode=mode,
        )
    read.node.replace_all_uses_with(attended)
    graph.erase_node(read.node)


def _narrowed(there: torch.Tensor, rows: torch.Tensor, *mask: torch.Tensor) -> torch.Tensor:
    return narrowed(there, rows, mask[0] if mask else None)


def _width(side: Grown) -> int:
    return int(side.past.meta["val"].shape[3])
