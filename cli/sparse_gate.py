"""Sparse gate: a sparse step of decode is the full one with rows masked.

``sparse identity``  with as many pages as there are, the step gives what the full one gives
``sparse``           on caches long enough to drop pages, the chosen pages are the best but for
                     near-ties, and the outputs those of the full step with all others masked
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokopt.cli.stored_cache import StoredCache
from tokopt.ir.decoding import Decoding
from tokopt.ir.part import Part, own_name
from tokopt.ir.tolerances import ORACLE, TIE, coarsest
from tokopt.passes.decompose import decompose
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.masked import best_pages, run_sparse
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.passes.sparse_decode.sparsify import sparsify
from tokopt.passes.validate import Verdict, relative_difference, run_program
from tokopt.targets.base import Runner

CALMER = 0.9
"""By how much each repetition of a lengthened cache is smaller: equal pages would all tie."""


@dataclass(frozen=True)
class Step:
    """The full step ``plain``, on ``given`` caches in full, and what is to become sparse of it."""

    plain: Part
    how: Decoding
    groups: Groups
    pages: Pages
    given: Mapping[str, Tensor]

    @property
    def caches(self) -> list[str]:
        """The inputs that grow."""
        return [cache.input for cache in self.how.caches]

    def long(self, cache: StoredCache | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return inputs with caches twice as long as what is kept, rows repeated.

        As they are stored, and as what is stored is read.
        """
        found, rows = dict(self.given), 2 * self.pages.rows + self.pages.page // 2
        for side in self.how.caches:
            found[side.input] = _repeated(self.given[side.input], side.dim, rows, CALMER)
        if self.how.mask is not None:
            mask = self.given[self.how.mask]
            prompt, own = mask[:, :-1], mask[:, -1:]
            found[self.how.mask] = torch.cat([_repeated(prompt, 1, rows, 1), own], 1)
        taken, reads = dict(found), dict(found)
        for one, kept in () if cache is None else cache.by_cache():
            full = found[one.input]
            stored = kept.stored(full)
            taken.update({kept.input_of(one.input, n): value for n, value in stored.items()})
            read = kept.format.dequantize(kept.side, stored, kept.constants)
            reads[one.input] = read.to(full.dtype)
        return taken, reads

    def judge_identity(self) -> Iterator[Verdict]:
        """Yield the verdict on a step that keeps all pages."""
        longest = max(self.given[cache.input].shape[cache.dim] for cache in self.how.caches) + 1
        every = replace(self.pages, pages=max(self.pages.recent, -(-longest // self.pages.page)))
        kept = sparsify(self.plain.exported, self.caches, self.groups, every)
        wanted = run_program(self.plain.exported, self.given, full=True)
        got = run_program(kept, self.given, full=True)[: len(wanted)]
        compared = "decode that reads every page, with decode as it was"
        yield _verdict("sparse identity", compared, _worst(wanted, got), ORACLE)


def judge_step(
    step: Step, part: Part, who: str, runner: Runner | None, cache: StoredCache | None
) -> Verdict:
    """Return the verdict on a sparse step: ``runner``'s, or without one that of torch in fp32."""
    (taken, reads), allowed = step.long(cache), ORACLE
    if runner is None:
        values = run_program(decompose(part.exported), taken, full=True)
        got = dict(zip(part.outputs, values, strict=True))
    else:
        got, allowed = runner(taken), max(ORACLE, coarsest(part.exported))
    pages = [got[name] for name in part.outputs[len(step.plain.outputs) :]]
    wanted = run_sparse(
        step.plain.exported, step.caches, step.groups, step.pages, reads, forced=pages
    )
    compared = f"{who}: a sparse step, with decode as it was and all other pages masked"
    tie = TIE if allowed <= ORACLE else allowed
    for depth, scores, chosen in zip(step.groups.select, wanted.scores, pages, strict=True):
        for item, (sums, one) in enumerate(zip(scores, chosen.tolist(), strict=True)):
            wrong = _wrong(sums, one, step.pages, tie)
            if wrong:
                where = f"layer {depth}, item {item}: {wrong}"
                return Verdict("sparse", False, compared, None, tie, where)
    outputs = zip(step.plain.outputs, wanted.outputs, strict=True)
    stored = (
        set()
        if cache is None
        else {own_name(one.output, step.plain.exported) for one, _ in cache.by_cache()}
    )
    pairs = [(value, got[name].float()) for name, value in outputs if name not in stored]
    worst = _worst([a for a, _ in pairs], [b for _, b in pairs])
    return _verdict("sparse", compared, worst, allowed)


def _wrong(scores: list[float], chosen: list[int], pages: Pages, tie: float) -> str:
    """Return what is wrong with a choice of pages; empty where nothing is."""
    best = best_pages(scores, pages)
    if len(chosen) != pages.pages or chosen != sorted(set(chosen)):
        return f"{len(chosen)} pages, not {pages.pages} ascending ones"
    kept = [page for page in chosen if page < len(scores)]
    recent = range(max(0, len(scores) - pages.recent), len(scores))
    if not set(recent) <= set(kept) or len(kept) != len(best):
        return "the last pages are not among the chosen"
    worse = min((scores[page] for page in set(kept) - set(best)), default=0.0)
    better = max((scores[page] for page in set(best) - set(kept)), default=0.0)
    return "" if better - worse <= tie * max(1.0, *scores) else f"pages {kept} instead of {best}"


def _repeated(rows: Tensor, dim: int, count: int, calmer: float) -> Tensor:
    times = -(-count // rows.shape[dim])
    made = [rows * calmer**n if rows.is_floating_point() else rows for n in range(times)]
    return torch.cat(made[::-1], dim).narrow(dim, times * rows.shape[dim] - count, count)


def _worst(wanted: list[Tensor], got: list[Tensor]) -> float:
    return max(relative_difference(a, b) for a, b in zip(wanted, got, strict=True))


def _verdict(gate: str, compared: str, worst: float, allowed: float) -> Verdict:
    message = "" if worst <= allowed else f"the outputs differ by {worst:.3g}"
    return Verdict(gate, worst <= allowed, compared, worst, allowed, message)
