"""Budget report: what a plan spends per consumer layer and in total, and what choosing costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.facts import Facts
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import Applied
from tokopt.passes.budget import hands_on, row_count, spent, tower_rows, visual_rows
from tokopt.passes.cost import Cost, stage_costs
from tokopt.passes.macs import count_macs


@dataclass(frozen=True)
class Work:
    """Operations in one run, counted from the graphs (2 for a multiply-accumulate).

    ``original`` and ``left`` are those of the model's own products before and after, ``selector``
    what each stage adds, in plan order; ``reuse`` what it takes to reuse rows.  Where rows are
    reused ``left`` and ``reuse`` are means over the calls from one reference to the next.
    """

    original: int
    left: int
    selector: tuple[Cost, ...]
    reuse: Cost = field(default_factory=Cost)

    @property
    def saved(self) -> int:
        """What the model itself no longer does."""
        return self.original - self.left

    @property
    def selector_share(self) -> float | None:
        """How much of what is saved the selector does instead; None where nothing is saved."""
        return self._added / self.saved if self.saved > 0 else None

    @property
    def total(self) -> float:
        """What is done, the selector's own work included, as a share of the original."""
        return (self.left + self._added) / self.original

    @property
    def _added(self) -> int:
        return sum(cost.flops for cost in (*self.selector, self.reuse))


@dataclass(frozen=True)
class BudgetReport:
    """``rows``: visual rows in each consumer layer of ``of``; ``total`` the share spent.

    Of a model of text alone rows are words; a text encoder counts as one layer of its reader.

    ``tower``: tokens per layer of each tower that feeds the consumer, by role, and of how many.
    ``what`` the rows are: visual, or text.
    """

    role: str
    of: int
    rows: tuple[int, ...]
    total: float
    tower: dict[str, tuple[int, tuple[int, ...]]]
    what: str = "visual"


def report_budget(facts: Facts, plan: Plan) -> BudgetReport:
    """Return what a plan spends."""
    counts = {s.role: s for s in facts.stacks}
    return BudgetReport(
        f"reader of {facts.consumer.role}" if hands_on(facts.consumer) else facts.consumer.role,
        row_count(facts.consumer),
        visual_rows(facts, plan),
        float(spent(facts, plan)),
        {r: (row_count(counts[r]), rows) for r, rows in tower_rows(facts, plan).items()},
        "text" if facts.consumer.role.startswith("text") else "visual",
    )


def report_work(original: ExportedProgram, applied: Applied, inputs: Mapping[str, Tensor]) -> Work:
    """Return what a rewritten program does; ``inputs`` by name give free sizes their values."""
    whole = with_memory(applied.memory, inputs)
    left, reuse = _products(applied, whole), Cost()
    if applied.reference is not None:
        every, reference = applied.every, applied.reference
        left = (_products(reference, whole) + (every - 1) * left) // every
        (update,) = stage_costs(applied.exported, [applied.reusing], whole)
        (given,) = stage_costs(reference.exported, [reference.reusing], taken(reference, whole))
        every_call = given + update.times(every - 1)
        reuse = Cost(every_call.flops // every, every_call.bytes // every)
    costs = stage_costs(applied.exported, applied.inserted, whole)
    return Work(2 * count_macs(original, inputs), 2 * left, costs, reuse)


def _products(applied: Applied, inputs: Mapping[str, Tensor]) -> int:
    """Return the multiply-accumulates of a program that its stages did not insert."""
    added = frozenset().union(applied.reusing, *applied.inserted)
    return count_macs(applied.exported, taken(applied, inputs), added)


def taken(applied: Applied, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return those inputs that a program takes."""
    names = set(applied.exported.graph_signature.user_inputs)
    return {name: value for name, value in inputs.items() if name in names}


def measured_rows(kept: Sequence[Tensor]) -> tuple[int, ...]:
    """Return how many rows each stage really kept, protected and text rows included."""
    return tuple(int(rows.shape[1]) for rows in kept)
