"""Compiler: the whole main job, stage under stage: load, analyse, plan, rewrite, verify, lower.

``compile`` is the Python form of ``tokopt compile``.  An artifact whose gates failed is kept and
marked; its manifest says which gate and by how much.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tokopt.cli.asked import (
    SEARCH,
    Wanted,
    checked_budgets,
    refuse_beside_plan,
    refuse_beside_search,
    refuse_unjudged,
)
from tokopt.cli.buckets import checked_buckets, refuse_buckets
from tokopt.cli.candidate import Candidate, graphs_of
from tokopt.cli.chooser import Chooser
from tokopt.cli.clock import Clock
from tokopt.cli.compiled import Compiled, default_folder, journal_of
from tokopt.cli.one_program import OneProgram
from tokopt.cli.planner import Planner, device_for
from tokopt.cli.record import record
from tokopt.cli.recorded import Costs
from tokopt.cli.separate_programs import RAISED, Parted, SeparatePrograms
from tokopt.cli.sparse_decode import (
    no_decode,
    refuse_copies,
    refuse_pools,
    sparse_program,
    with_sparse,
)
from tokopt.cli.stored_cache import CACHE
from tokopt.cli.whole import Whole
from tokopt.ir.errors import InputError
from tokopt.ir.load import load
from tokopt.ir.plan import Outputs, Plan, Quota
from tokopt.ir.program import Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget_report import report_budget, report_work
from tokopt.passes.kv.asked import Auto, asked_formats
from tokopt.passes.limits import Limits
from tokopt.passes.methods.registry import find_method
from tokopt.passes.select import read_plan_text
from tokopt.passes.sparse_decode.asked import asked_sparse
from tokopt.passes.validate import Checked, Verdict, validate
from tokopt.passes.within import Meter
from tokopt.targets import registry
from tokopt.targets.artifact import building
from tokopt.targets.base import Target
from tokopt.targets.parts import FIRST, part_of
from tokopt.targets.program_file import save_program


def compile(
    source: str | Path | Program,
    output: str | Path | None = None,
    *,
    budget: float | Sequence[float] | Limits | None = None,
    method: str | None = None,
    attention: str | None = None,
    quota: Quota | None = None,
    kv: str | None = None,
    sparse_decode: str | None = None,
    plan: str | Path | Plan | None = None,
    prompt_buckets: Sequence[int] | None = None,
    target: str | None = None,
    device: str | None = None,
    inputs: str | Path | Mapping[str, Tensor] | None = None,
    outputs: Outputs | None = None,
    seed: int | None = None,
    search: Wanted | None = None,
    quiet: bool = True,
) -> Compiled:
    """Compile an exported model into an artifact folder.

    An archive of several programs (vision, prefill, decode) gives an artifact of as many.
    ``budget`` is the share of visual tokens left (mean over the consumer's layers); of several,
    each gets its own program over the same weights, the first is what runs unless another is asked
    for.  ``Limits`` are one budget of several numbers, all of them kept; ``device`` says of what
    ``latency`` is predicted (this CPU, where the target runs on it).  ``attention`` asks for
    rewrites of a decoder's attention beside stages: ``var{p=0.6}``.
    ``kv`` stores decode's cache in a format or in those of keys / values (``int8/int4``); ``auto``:
    each layer in as few bits as leave the next token as it is, no fewer than 4
    (``auto{bits=2}``: than 2).  ``sparse_decode`` (``delta``) adds
    a decode program for long caches, of which most layers read some pages alone (docs/decode.md).
    ``prompt_buckets`` are constant prompt lengths: each gets a program (of each budget), and
    shorter prompts are padded to the next.  ``plan`` is a plan or its file, applied exactly.
    ``inputs`` (named tensors, or a safetensors file) are what the gates run on and, for calibrated
    methods, what is measured; the archive's example inputs where none are given.  ``outputs``
    (``full`` where none is given), ``seed`` (0) and ``quota`` (``joint``; ``image``: every image of
    a prompt keeps an equal share, see ``Stage``) belong to a budget: a plan holds its own.  Raises
    ``TokoptError`` for everything a user can mend; an artifact whose gates failed is written,
    marked, and returned with ``ok`` false.  ``output`` is a folder; ``model.tokopt`` for
    ``model.pt2`` where none is given.  ``search``: judge plans on samples and take the best for
    each budget; without it, the default method's published placement.
    """
    if (budget is None) == (plan is None):
        raise InputError("give either a budget or a plan", expected="--budget 0.1 or --plan FILE")
    if plan is not None:
        refuse_beside_plan(
            {
                "method": method,
                "attention": attention,
                "seed": seed,
                "outputs": outputs,
                "quota": quota,
                "kv": kv,
                "sparse_decode": sparse_decode,
            }
        )
    if search is not None:
        refuse_beside_search({"plan": plan, "method": method, "quota": quota})
        refuse_unjudged(attention)
    limits = budget if isinstance(budget, Limits) else None
    budgets = (1.0,) if isinstance(budget, Limits) else checked_budgets(budget)
    buckets = checked_buckets(prompt_buckets)
    folder = Path(output) if output is not None else default_folder(source)
    clock = Clock(quiet)
    chosen = available(target)
    file, formats = None, None if kv is None else asked_formats(kv)
    if isinstance(formats, Auto):
        trades = search is not None and limits is not None and limits.kv is not None
        apart = RAISED not in chosen.alike
        tokens = limits.rows if limits is not None and trades else _least(limits, budgets)
        formats = replace(formats, tokens=tokens, apart=apart, further=trades)
    asked = None if sparse_decode is None else asked_sparse(sparse_decode)
    if plan is not None and not isinstance(plan, Plan):
        file = Path(plan).with_name(CACHE)
        plan = Plan.from_toml(read_plan_text(str(plan)), str(plan))
    with torch.no_grad(), clock.stage("load"):
        program = source if isinstance(source, Program) else load(source)
    with torch.no_grad(), building(folder) as draft:
        whole: Whole
        if len(program.graphs) > 1:
            refuse_buckets(buckets, program.source)
            whole = SeparatePrograms.of(program, inputs, clock)
        else:
            whole = OneProgram.of(program, inputs, buckets, len(budgets or (plan,)), clock)
        long = asked if plan is None else plan.decode
        if long is not None and whole.decoding is None:
            raise no_decode(program.source)
        if long is not None and whole.decoding is not None:
            refuse_copies(chosen, whole.decoding, long)
        caching = formats if plan is None else plan.cache
        if caching:
            with clock.stage("cache"):
                whole = whole.with_cache(caching, file)
        if long is not None:
            refuse_pools(whole.cache)
        facts, given = whole.facts, whole.given
        searcher = None
        if search is not None:
            with clock.stage("calibration"):
                from tokopt.cli.searcher import Searcher  # Optuna takes a second to import

                searcher = Searcher(whole, search, program.sha256, journal_of(folder), quiet)
        caches = () if whole.cache is None else whole.cache.records
        meter = Meter(facts, given, device_for(limits, chosen, device), caches)
        joint = (quota or "joint", seed or 0, outputs or "full")
        planner = Planner(facts, given, method, attention, *joint)
        named = "" if meter.device is None else meter.device.stated
        chooser = Chooser(plan, searcher, planner, meter, limits)
        made: list[Candidate] = []
        normal: list[Verdict] = []
        for number, share in enumerate(budgets or (None,)):
            with clock.stage(chooser.stage):
                wanted, note = chooser.choose(share)
                if wanted.cache and plan is None:  # a search chose its bits
                    whole = whole.with_cache(wanted.cache, None)
                    caches = () if whole.cache is None else whole.cache.records
                    meter = replace(meter, stored=caches)
                if whole.cache is not None:
                    wanted = replace(wanted, cache=whole.cache.entries)
                whole.check(wanted)
                spent = report_budget(facts, wanted)
            with clock.stage("rewrite"):
                applied = apply_plan(facts.exported, wanted, find_method)
                work = report_work(facts.exported, applied, given)
                costs = Costs.of(meter, limits, wanted, work)
                checked = Checked(facts, wanted, applied, find_method)
                part = FIRST if number == 0 or share is None else part_of(share)
                rewritten = whole.rewritten(checked, part, chosen.native)
            with clock.stage("verify"):
                normal = normal if made else list(whole.judge_normal())
                verdicts = [*normal, *validate(checked, [given]), *rewritten.judge()]
            found = (checked, rewritten, verdicts, caches)
            made.append(Candidate(costs, note, spent, work, *found))
        sparse = None
        if long is not None:
            with clock.stage("sparse decode"):
                first, plans = made[0].rewritten, [one.checked.plan for one in made]
                assert isinstance(first, Parted)
                assert whole.decoding is not None
                ground = (first.plain, whole.decoding, first.whole.every, plans)
                sparse = sparse_program(*ground, long, whole.cache)
                made = with_sparse(made, sparse)
                made[0].verdicts.extend(sparse.judge())
        with clock.stage(f"lower to {chosen.name}"), redirect_stdout(io.StringIO()):
            further = {} if sparse is None else sparse.graphs
            stored = save_program(Program({**graphs_of(made), **further}), draft)
            for one in made:
                one.rewritten.lower(chosen, draft, stored)
            if sparse is not None:
                sparse.lower(chosen, draft, stored)
        with clock.stage("verify the target"):
            for one in made:
                one.verdicts.extend(one.rewritten.judge_target(chosen, draft))
            if sparse is not None:
                made[0].verdicts.extend(sparse.judge_target(chosen, draft))
        if searcher is not None:
            (draft / SEARCH).write_text(searcher.table(), encoding="utf-8")
        ran = (chosen, program.sha256, named, clock)
        manifest = record(draft, made, whole, None if sparse is None else sparse.record, *ran)
    if searcher is not None:
        journal_of(folder).unlink(missing_ok=True)
    own, *others = (
        Compiled(folder, one.checked.plan, one.spent, one.work, manifest.parts[part], one.note)
        for one, part in zip(made, manifest.parts, strict=True)
    )
    return replace(own, others=tuple(others))


def _least(limits: Limits | None, budgets: Sequence[float] | None) -> float:
    """Return the share of tokens that the smallest budget leaves; 0 where none says so."""
    if limits is not None:
        return limits.given.get("tokens", 0.0)
    return min(budgets or (1.0,))


def available(name: str | None) -> Target:
    """Return a target that runs here, the best where none is named; ``InputError`` says why not."""
    chosen = registry.find(name) if name else registry.default()
    reason = chosen.available()
    if reason is not None:
        raise InputError(f"the target {chosen.name} is not available here: {reason}")
    return chosen
