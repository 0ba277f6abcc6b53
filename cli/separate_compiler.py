"""Separate compiler: several programs of one model: joined, rewritten, parted, each lowered."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from tokopt.cli.clock import Clock
from tokopt.cli.generation import refuse_stages, with_followers
from tokopt.cli.inputs import check_merges
from tokopt.cli.recorded import Costs, gate_result, recorded_budget
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import Original, judge_parts, judge_target
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.placeholders import find_placeholders
from tokopt.ir.plan import Outputs, Plan, Quota
from tokopt.ir.program import Program
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget_report import BudgetReport, Work, report_budget, report_work
from tokopt.passes.decompose import decompose
from tokopt.passes.default_plan import default_fit
from tokopt.passes.gradients import gradient_orders, with_orders
from tokopt.passes.methods.registry import find_method
from tokopt.passes.observe import observe
from tokopt.passes.quotas import with_quota
from tokopt.passes.rewrites.asked import asked_attention
from tokopt.passes.validate import Checked, validate
from tokopt.targets.artifact import LOG, PLAN, building, seal
from tokopt.targets.base import Target
from tokopt.targets.manifest import FAILED, OK, Manifest, Run
from tokopt.targets.program_file import save_program


@dataclass(frozen=True)
class Made:
    """What a compile of several programs made."""

    plan: Plan
    spent: BudgetReport
    work: Work
    manifest: Manifest
    note: str


def compile_separate(
    program: Program,
    folder: Path,
    target: Target,
    clock: Clock,
    *,
    budgets: Sequence[float] = (),
    method: str | None = None,
    attention: str | None = None,
    quota: Quota = "joint",
    plan: Plan | None = None,
    inputs: str | Path | Mapping[str, Tensor] | None = None,
    outputs: Outputs | None = None,
    seed: int | None = None,
) -> Made:
    """Compile an archive of several programs into an artifact folder that holds as many.

    The arguments are those of ``compile``.  Raises ``UnsupportedError`` for stages inside the
    decoder where decode's caches have one length, for several budgets, and for a program that takes
    a constant number of rows that is gone.
    """
    if len(budgets) > 1:
        raise UnsupportedError(
            "several budgets for several programs",
            where=program.source,
            expected="one budget",
            hint="compile one artifact for each budget",
        )
    with torch.no_grad(), building(folder) as draft:
        with clock.stage("normalize"):
            separate = Separate.of(program)
        given = separate.inputs(inputs)
        own = separate.of_joined(given)
        with clock.stage("analyse"):
            facts = analyse(separate.joined)
            placeholders = find_placeholders(facts)
            check_merges(own, placeholders, inputs)
        with clock.stage("plan"):
            note, front = "", with_followers(facts, separate)
            if plan is None:
                seen = observe(facts, own)
                fitted = default_fit(front, budgets[0], method, seen.entropies, seed or 0)
                orders = partial(gradient_orders, facts, [own], [seen])
                ordered = with_orders(fitted.plan, find_method, orders)
                stages = with_quota(facts, ordered, quota).stages
                rewrites = asked_attention(facts, attention) if attention is not None else ()
                plan = Plan(stages, budgets[0], seed or 0, outputs or "full", rewrites)
                note = fitted.note
            refuse_stages(front, plan)
            spent = report_budget(facts, plan)
        with clock.stage("rewrite"):
            applied = apply_plan(separate.joined, plan, find_method)
            work = report_work(separate.joined, applied, own)
            parts, chain = separate.parted(applied, target.native)
        with clock.stage("verify"):
            checked = Checked(facts, plan, applied, find_method)
            verdicts = [*validate(checked, [own])]
            verdicts += judge_parts(separate, checked, parts, chain, given)
        with clock.stage(f"lower to {target.name}"), redirect_stdout(io.StringIO()):
            lowered = {name: parts[name].exported for name in separate.order}
            plain = {name: decompose(one) for name, one in lowered.items()}
            stored = save_program(Program(plain), draft)
            for entry in chain.programs:
                one = parts[entry.name]
                target.lower(one.exported, draft, one.outputs, stored, entry.part)
        (draft / PLAN).write_text(plan.to_toml(), encoding="utf-8")
        with clock.stage("verify the target"):
            original = Original(checked, own, separate.outer_outputs(chain))
            verdicts += judge_target(target, draft, chain, lowered, given, original)
        log = "\n".join([*clock.lines, *(str(v) for v in verdicts), ""])
        (draft / LOG).write_text(log, encoding="utf-8")
        manifest = seal(
            draft,
            Manifest(
                target=target.name,
                signature=chain.signature,
                placeholders=placeholders,
                input_sha256=program.sha256,
                seed=plan.seed,
                budget=recorded_budget(Costs.plain(plan), plan, spent, work, verdicts),
                gates=tuple(gate_result(v) for v in verdicts),
                run=Run(datetime.now(UTC).isoformat(timespec="seconds"), dict(clock.seconds)),
                programs=tuple(chain.programs),
                links=tuple(chain.links),
                decoding=separate.decoding(facts),
                status=OK if all(v.passed for v in verdicts) else FAILED,
            ),
        )
    return Made(plan, spent, work, manifest, note)
