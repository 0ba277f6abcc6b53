"""Sparse decode: a second decode program beside the full one, for caches of many rows.

Made once all budgets have their programs, of the first's: decode is the same for all.  Its layers
are those of a plan, or found on the inputs at hand: groups of the paper's and of least loss
(``placement.py``) are run, and those stay that leave the next token with the fewest full layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.cache_gate import Programs
from tokopt.cli.candidate import Candidate
from tokopt.cli.separate_programs import RAISED
from tokopt.cli.sparse_gate import Step, judge_step
from tokopt.cli.stored_cache import StoredCache
from tokopt.ir.cache_reads import find_cache_reads
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.part import Part, own_name
from tokopt.ir.plan import Plan, SparseDecode
from tokopt.ir.tolerances import IDENTITY
from tokopt.passes.decompose import decompose
from tokopt.passes.search.objective import divergence
from tokopt.passes.sparse_decode.asked import DELTA, FROM, Asked, planned_sparse
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.masked import run_sparse
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.passes.sparse_decode.pays import paying_rows
from tokopt.passes.sparse_decode.placement import (
    least_loss,
    losses,
    measured_pages,
    published,
)
from tokopt.passes.sparse_decode.sparsify import sparsify
from tokopt.passes.validate import Verdict, relative_difference, run_program
from tokopt.targets.base import Target
from tokopt.targets.calling import on_host
from tokopt.targets.manifest import SparseStep
from tokopt.targets.parts import part_named
from tokopt.targets.runtime import TRACE
from tokopt.targets.stored_weights import StoredWeights

MOST = 0.01
"""Nats of KL(full ‖ sparse), the mean over prompts, as for the bits of a cache."""


@dataclass(frozen=True)
class SparseProgram:
    """``plain`` takes caches in full, ``parts`` are all programs with it in decode's place."""

    step: Step
    record: SparseStep
    parts: Mapping[str, Part]
    cache: StoredCache | None

    @property
    def name(self) -> str:
        """The decode program's."""
        return self.step.how.program

    @property
    def final(self) -> Part:
        """The program as it is saved."""
        return self._stored(False)

    def _stored(self, raised: bool) -> Part:
        if self.cache is None:
            return self.parts[self.name]
        return self.cache.program(self.name, self.parts, raised)

    @property
    def graphs(self) -> dict[str, ExportedProgram]:
        """What ``program.pt2`` holds of it."""
        return {self.record.part[1:]: decompose(self.final.exported)}

    @property
    def planned(self) -> SparseDecode:
        """What a plan says of it."""
        one = self.record
        numbers = {"page": one.page, "pages": one.pages, "recent": one.recent, FROM: one.rows}
        return SparseDecode(one.method, one.full, one.select, numbers)

    def judge(self) -> Iterator[Verdict]:
        """Yield the verdicts in torch."""
        yield from self.step.judge_identity()
        yield judge_step(self.step, self.final, "torch", None, self.cache)

    def judge_saved(self, saved: ExportedProgram) -> Verdict:
        """Return whether a saved program computes what the plan applied again does."""
        given, compared = self.step.long(self.cache)[0], "the sparse decode that is saved"
        wanted, got = (
            run_program(self.graphs[self.record.part[1:]], given),
            run_program(saved, given),
        )
        if [(v.shape, v.dtype) for v in wanted] != [(v.shape, v.dtype) for v in got]:
            return Verdict("program", False, compared, message="its outputs are others")
        worst = max(relative_difference(a, b) for a, b in zip(wanted, got, strict=True))
        return Verdict("program", worst <= IDENTITY, compared, worst, IDENTITY)

    def lower(self, target: Target, draft: Path, stored: StoredWeights) -> None:
        """Write the target's files."""
        part = self._stored(RAISED in target.native)
        exported = decompose(part.exported, keep=target.native)
        target.lower(exported, draft, part.outputs, stored, self.record.part)

    def judge_target(self, target: Target, draft: Path) -> Iterator[Verdict]:
        """Yield the verdict on what the target computes."""
        runner = on_host(target.open(draft, self.record.part))
        yield judge_step(self.step, self.final, target.name, runner, self.cache)


def sparse_program(
    plain: Programs,
    how: Decoding,
    every: Mapping[str, Tensor],
    plans: Sequence[Plan],
    wanted: Asked | SparseDecode,
    cache: StoredCache | None,
) -> SparseProgram:
    """Return the sparse decode of a model's programs; ``every``: outer inputs, to measure on.

    ``plain`` are the first budget's, with caches in full; ``plans`` those of all.
    Raises ``UnsupportedError`` for caches that are read in another way or where no length pays, and
    ``InputError`` for layers of a plan that do not fit it.
    """
    program = plain.parts[how.program]
    given = dict(plain.run(every)[how.program][0])
    breaks = breaks_of(plans)
    caches = [one.input for one in how.caches]
    reads = find_cache_reads(program.exported, caches)
    if isinstance(wanted, SparseDecode):
        asked, note = planned_sparse(wanted), ""
        groups = Groups(len(reads), wanted.full, wanted.select)
        _refuse_torn(groups, breaks)
    else:
        asked = wanted
        groups, note = placed(program, how, asked.pages, given, breaks)
    part, pages = part_named(f"{how.program}-sparse"), asked.pages
    if part[1:] in plain.parts:
        raise UnsupportedError(f"the archive has a program {part[1:]!r} already")
    sides = [[side.past.meta["val"].shape for side in (one.key, one.value)] for one in reads]
    widths = [(int(k[1] * k[3]), int(v[1] * v[3])) for k, v in sides]
    rows = paying_rows(groups, pages, widths) if asked.rows is None else asked.rows
    traced = [f"{TRACE}decode.{depth}.kept" for depth in groups.select]
    sparse = sparsify(program.exported, caches, groups, pages)
    made = Part(sparse, (*program.outputs, *traced))
    numbers = (pages.page, pages.pages, pages.recent)
    record = SparseStep(part, DELTA, rows, groups.full, groups.select, *numbers, note)
    step = Step(program, how, groups, pages, given)
    return SparseProgram(step, record, {**plain.parts, how.program: made}, cache)


def refuse_copies(target: Target, how: Decoding, wanted: Asked | SparseDecode) -> None:
    """Refuse what pays at no length: sparse steps that copy caches which full ones do not.

    Not where the length from which on they decode is the user's own.
    """
    asked = wanted.rows is None if isinstance(wanted, Asked) else False
    whole = next((one.input for one in how.caches if one.whole), None)
    if target.in_place and whole is not None and asked:
        raise UnsupportedError(
            f"sparse decode pays at no length on {target.name}: it writes a step's rows in place, "
            "and sparse steps would copy every cache for each token",
            where=f"{how.program}.{whole}, which comes back whole",
            expected="a decode that gives its new rows, or another target",
            hint=f"--sparse-decode 'delta{{{FROM}=8192}}' takes sparse steps from there on all the "
            "same",
        )


def refuse_pools(cache: StoredCache | None) -> None:
    """Refuse a cache whose rows lie in another order than they came."""
    if cache is not None and any(kept.format.pooled for _, kept in cache.by_cache()):
        raise UnsupportedError(
            "sparse decode reads pages of rows in their order",
            expected="a cache that stores no salient rows apart",
            hint="store the cache in int8, int4 or kivi, or leave --sparse-decode out",
        )


def no_decode(source: str) -> UnsupportedError:
    """Return the refusal of a model without a decode whose form is known."""
    return UnsupportedError(
        "sparse decode is for archives with one decode program that takes caches, grows them by "
        "cat and gives them back, and none here does",
        where=source,
        hint="export with `tokopt export --decode`",
    )


def placed(
    program: Part,
    how: Decoding,
    pages: Pages,
    given: Mapping[str, Tensor],
    breaks: Sequence[int],
) -> tuple[Groups, str]:
    """Return the groups with the fewest full layers that leave the next token, and how.

    The paper's groups and those of least loss are run; where none stays within ``MOST`` nats of the
    full step's next token, those that are nearest.  How many layers read all rows is bisected,
    from the paper's number to half of the layers.
    """
    decode, caches = program.exported, [cache.input for cache in how.caches]
    rows = min(given[cache.input].shape[cache.dim] for cache in how.caches) + 1
    tried = measured_pages(rows, pages)
    full = run_sparse(decode, caches, None, tried, given)
    lost = losses(full.probabilities, tried)
    place = program.outputs.index(own_name(how.next_logits, decode))
    wanted = full.outputs[place][:, -1]
    found: dict[Groups, float] = {}

    def near(groups: Groups) -> bool:
        if groups not in found:
            got = run_sparse(decode, caches, groups, tried, given).outputs[place][:, -1]
            found[groups] = float(divergence(wanted, got).mean())
        return found[groups] <= MOST

    paper = published(len(lost), breaks)
    near(paper)
    low = dense(paper)
    high = max(low, len(lost) // 2)
    if not near(least_loss(lost, low, breaks)):
        while low < high:
            middle = (low + high) // 2
            good = near(least_loss(lost, middle, breaks))
            low, high = (low, middle) if good else (middle + 1, high)
        near(least_loss(lost, high, breaks))
    close = [groups for groups, far in found.items() if far <= MOST]
    best = min(close or found, key=lambda one: (dense(one) if close else 0, found[one]))
    whose = "the paper's layers" if best == paper else "layers of least loss"
    return best, (
        f"{whose}: {found[best]:.3g} nats from the full step's next token, the paper's "
        f"{found[paper]:.3g}; measured with {tried.pages} pages of {tried.page} of {rows} rows"
    )


def dense(groups: Groups) -> int:
    """Return how many layers read all rows."""
    return len(groups.full) + len(groups.select)


def breaks_of(plans: Sequence[Plan]) -> list[int]:
    """Return the layers of a decoder in front of which plans drop rows."""
    sites = [stage.site.partition(":") for plan in plans for stage in plan.stages]
    return sorted(
        {int(d) for role, _, d in sites if role.startswith("decoder") and d.isdecimal() and int(d)}
    )


def _refuse_torn(groups: Groups, breaks: Sequence[int]) -> None:
    depth = groups.torn(breaks)
    if depth is not None:
        raise InputError(
            f"layer {depth} of decode would follow the choice of layer {groups.source[depth]}, and "
            "a stage between them drops rows: their caches have other rows",
            expected=f"layers that select at {', '.join(map(str, breaks))} too",
        )


def with_sparse(made: Sequence[Candidate], sparse: SparseProgram) -> list[Candidate]:
    """Return candidates whose plans say how decode is sparse."""
    plans = [replace(one.checked.plan, decode=sparse.planned) for one in made]
    return [
        replace(one, checked=replace(one.checked, plan=plan))
        for one, plan in zip(made, plans, strict=True)
    ]
