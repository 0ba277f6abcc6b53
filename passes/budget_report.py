"""Budget report: what a plan spends per consumer layer and in total, and what choosing costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.facts import Facts
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import Applied
from tokopt.passes.budget import row_count, spent, tower_rows, visual_rows
from tokopt.passes.cost import Cost, stage_costs
from tokopt.passes.macs import count_macs


@dataclass(frozen=True)
class Work:
    """Operations in one run, counted from the graphs (2 for a multiply-accumulate).

    ``original`` and ``left`` are those of the model's own products before and after, ``selector``
    what each stage adds, in plan order.
    """

    original: int
    left: int
    selector: tuple[Cost, ...]

    @property
    def saved(self) -> int:
        """What the model itself no longer does."""
        return self.original - self.left

    @property
    def selector_share(self) -> float | None:
        """How much of what is saved the selector does instead; None where nothing is saved."""
        return sum(cost.flops for cost in self.selector) / self.saved if self.saved > 0 else None

    @property
    def total(self) -> float:
        """What is done, the selector's own work included, as a share of the original."""
        return (self.left + sum(cost.flops for cost in self.selector)) / self.original


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


def report_work(original: ExportedProgram, applied: Applied, inputs: Mapping[str, Tensor]) -> Work:
    """Return what a rewritten program does; ``inputs`` by name give free sizes their values."""
    added = frozenset().union(*applied.inserted)
    before, inputs = inputs, with_memory(applied.memory, inputs)
    return Work(
        2 * count_macs(original, before),
        2 * count_macs(applied.exported, inputs, added),
        stage_costs(applied.exported, applied.inserted, inputs),
    )


def measured_rows(kept: Sequence[Tensor]) -> tuple[int, ...]:
    """Return how many rows each stage really kept, protected and text rows included."""
    return tuple(int(rows.shape[1]) for rows in kept)
