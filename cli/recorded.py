"""Recorded: verdicts and budgets of a compile in the manifest's own form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokopt.ir.plan import Plan
from tokopt.passes.budget_report import BudgetReport, Work
from tokopt.passes.limits import Limits
from tokopt.passes.validate import Verdict
from tokopt.passes.within import Meter, kv_share
from tokopt.targets.manifest import Amount, Budget, CachedLayer, GateResult, LayerSpend, StageCost


def gate_result(verdict: Verdict) -> GateResult:
    """Return a verdict as a manifest has it."""
    return GateResult(
        verdict.gate,
        verdict.passed,
        verdict.compared,
        verdict.max_difference,
        verdict.tolerance,
        verdict.message,
    )


@dataclass(frozen=True)
class Costs:
    """What was ``asked`` for, by kind, and the ``seconds`` that a plan is predicted to take.

    ``seconds`` is None where no device was named.
    """

    asked: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None

    @staticmethod
    def of(meter: Meter, limits: Limits | None, plan: Plan, work: Work) -> Costs:
        """Return those of a plan: limits, those of latency in seconds, or its share of tokens."""
        plain = Costs.plain(plan)
        if meter.device is None and limits is None:
            return plain
        asked = plain.asked if limits is None else {**limits.given, **meter.wanted(limits)}
        named = meter.device is not None
        return Costs(asked, meter.counted(plan, work)["latency"] if named else None)

    @staticmethod
    def plain(plan: Plan) -> Costs:
        """Return those of a plan for a share of the tokens."""
        return Costs({} if plan.budget is None else {"tokens": plan.budget})


def recorded_budget(
    costs: Costs,
    plan: Plan,
    report: BudgetReport,
    work: Work,
    verdicts: list[Verdict],
    stored: Sequence[CachedLayer] = (),
) -> Budget:
    """Return the manifest's budget; rows are measured where the selection gate counted them.

    ``stored``: how each layer stores its cache; empty where that is in full.
    """
    counted = any(v.gate == "selection" and v.passed for v in verdicts)

    def amount(share: float) -> Amount:
        return Amount(share, share if counted else None)

    total = {"tokens": amount(report.total), "flops": Amount(work.total, None)}
    if report.role.startswith("decoder"):
        total["kv"] = amount(kv_share(report.rows, report.of, stored))
    if costs.seconds is not None:
        total["latency"] = Amount(costs.seconds, None)
    return Budget(
        dict(costs.asked),
        total,
        tuple(
            LayerSpend(f"{report.role}:{depth}", {"tokens": amount(rows / report.of)})
            for depth, rows in enumerate(report.rows)
        ),
        work.saved,
        tuple(
            StageCost(stage.site, cost.flops, cost.bytes)
            for stage, cost in zip(plan.stages, work.selector, strict=True)
        ),
    )
