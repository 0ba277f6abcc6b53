"""Budget report: what a plan spends per consumer layer and in total, predicted and measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.passes.budget import row_count, spent, tower_rows, visual_rows


@dataclass(frozen=True)
class BudgetReport:
    """``rows``: visual rows in each consumer layer of ``of``; ``total`` the share spent.

    ``tower``: tokens per layer of each tower that feeds the consumer, by role, and of how many.
    """

    role: str
    of: int
    rows: tuple[int, ...]
    total: float
    tower: dict[str, tuple[int, tuple[int, ...]]]


def report_budget(facts: Facts, plan: Plan) -> BudgetReport:
    """Return what a plan spends."""
    counts = {s.role: s for s in facts.stacks}
    return BudgetReport(
        facts.consumer.role,
        row_count(facts.consumer),
        visual_rows(facts, plan),
        float(spent(facts, plan)),
        {r: (row_count(counts[r]), rows) for r, rows in tower_rows(facts, plan).items()},
    )


def measured_rows(kept: Sequence[Tensor]) -> tuple[int, ...]:
    """Return how many rows each stage really kept, protected and text rows included."""
    return tuple(int(rows.shape[1]) for rows in kept)
