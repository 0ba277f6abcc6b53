"""Recorded: verdicts and budgets of a compile in the manifest's own form."""

from __future__ import annotations

from tokopt.ir.plan import Plan
from tokopt.passes.budget_report import BudgetReport, Work
from tokopt.passes.validate import Verdict
from tokopt.targets.manifest import Amount, Budget, GateResult, LayerSpend, StageCost


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


def recorded_budget(
    requested: float | None,
    plan: Plan,
    report: BudgetReport,
    work: Work,
    verdicts: list[Verdict],
) -> Budget:
    """Return the manifest's budget; rows are measured where the selection gate counted them."""
    counted = any(v.gate == "selection" and v.passed for v in verdicts)

    def amount(share: float) -> Amount:
        return Amount(share, share if counted else None)

    return Budget(
        {} if requested is None else {"tokens": requested},
        {"tokens": amount(report.total), "flops": Amount(work.total, None)},
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
