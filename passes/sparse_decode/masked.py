"""Masked: decode as it was, where sparse layers' attention has all rows but the chosen masked.

Written apart from the rewrite: the graph is interpreted as it came, nothing is gathered, pages are
counted one by one in fp64.  The pages may be given instead of chosen: then it says what they score,
so that whoever chose otherwise can be told a near-tie from a mistake.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.binding import bind
from tokopt.ir.cache_reads import CacheRead, find_cache_reads
from tokopt.ir.dims import arguments_of
from tokopt.ir.precision import full_precision, with_full_inputs
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.pages import Pages


@dataclass(frozen=True)
class Masked:
    """``outputs`` of decode; of each choosing layer what the ``pages`` of every item score.

    ``probabilities`` are each layer's, fp32 ``[B, H, T]``; ``chosen`` the pages of every item.
    """

    outputs: list[Tensor]
    scores: list[list[list[float]]]
    chosen: list[list[list[int]]]
    probabilities: list[Tensor]


def run_sparse(
    decode: ExportedProgram,
    caches: Sequence[str],
    groups: Groups | None,
    pages: Pages,
    inputs: Mapping[str, Tensor],
    forced: Sequence[Tensor] = (),
) -> Masked:
    """Run decode in fp32 with masks; without ``groups`` all layers read all rows.

    ``forced``: the pages ``[B, K]`` of each choosing layer in place of the best; numbers behind the
    last page are none.
    """
    runner = _Masking(decode, find_cache_reads(decode, caches), groups, pages, forced)
    with torch.no_grad():
        results = runner.run(*with_full_inputs(decode, bind(decode, inputs)))
    outputs = list(full_precision(results))
    return Masked(outputs, runner.scores, runner.chosen, runner.seen)


def best_pages(scores: Sequence[float], pages: Pages) -> list[int]:
    """Return the pages that stay of one item, ascending."""
    last = set(range(max(0, len(scores) - pages.recent), len(scores)))
    others = sorted(set(range(len(scores))) - last, key=lambda page: (-scores[page], page))
    return sorted([*last, *others[: pages.pages - len(last)]])


@dataclass
class _Masking(fx.Interpreter):
    decode: ExportedProgram
    reads: Sequence[CacheRead]
    groups: Groups | None
    pages: Pages
    forced: Sequence[Tensor]
    scores: list[list[list[float]]] = field(default_factory=list)
    chosen: list[list[list[int]]] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(self.decode.graph_module)
        self.depth = {read.node: depth for depth, read in enumerate(self.reads)}
        self.kept: dict[int, Tensor] = {}

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return full_precision(super().call_function(target, args, kwargs))

    def run_node(self, n: fx.Node) -> Any:
        if n not in self.depth:
            return super().run_node(n)
        depth, given = self.depth[n], arguments_of(n)
        query, key, value = (self.env[given[side]] for side in ("query", "key", "value"))
        repeats = query.shape[1] // key.shape[1]
        key, value = (rows.repeat_interleave(repeats, 1) for rows in (key, value))
        logits = query.double() @ key.double().transpose(2, 3) * self.reads[depth].scale
        mask = self.reads[depth].mask
        if mask is not None:
            own = self.env[mask]
            bias = own.double() if own.is_floating_point() else _bias(own)
            logits = logits + bias
        if self.groups is not None and depth in self.groups.source:
            read = self.kept[self.groups.source[depth]]
            logits = logits + _bias(read[:, None, None])
        probabilities = logits.softmax(-1)
        self.seen.append(probabilities[:, :, 0].float())
        if self.groups is not None and depth in self.groups.select:
            self.kept[depth] = self._choose(depth, probabilities[:, :, 0])
        return (probabilities @ value.double()).float()

    def _choose(self, depth: int, probabilities: Tensor) -> Tensor:
        """Return bool ``[B, T]``: the rows that stay."""
        assert self.groups is not None
        largest, size = probabilities.max(1).values, self.pages.page
        read = torch.zeros(largest.shape, dtype=torch.bool)
        scores, chosen = [], []
        for item, rows in enumerate(largest):
            sums = [float(page.sum()) for page in rows.split(size)]
            best = best_pages(sums, self.pages)
            if self.forced:
                given = self.forced[self.groups.select.index(depth)][item].tolist()
                best = [page for page in given if page < len(sums)]
            for page in best:
                read[item, page * size : (page + 1) * size] = True
            scores.append(sums)
            chosen.append(best)
        self.scores.append(scores)
        self.chosen.append(chosen)
        return read


def _bias(read: Tensor) -> Tensor:
    return torch.zeros(read.shape, dtype=torch.float64).masked_fill(~read, float("-inf"))
