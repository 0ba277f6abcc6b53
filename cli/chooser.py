"""Chooser: the plan of each budget: as given, as searched for, or a published method's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tokopt.cli.planner import Planner
from tokopt.ir.plan import Plan
from tokopt.passes.limits import Limits
from tokopt.passes.search.bounded import Bounded
from tokopt.passes.within import Meter

if TYPE_CHECKING:
    from tokopt.cli.searcher import Searcher


@dataclass(frozen=True)
class Chooser:
    """``plan`` is taken as it is; else ``searcher`` finds one; else ``planner`` makes one."""

    plan: Plan | None
    searcher: Searcher | None
    planner: Planner
    meter: Meter
    limits: Limits | None

    @property
    def stage(self) -> str:
        """What choosing is called on the clock."""
        return "plan" if self.searcher is None else "search"

    def choose(self, budget: float | None) -> tuple[Plan, str]:
        """Return the plan of a budget, and what is to be said of it.

        ``budget``: a share of the tokens, None for a plan that was given.  Raises ``BudgetError``
        naming the nearest plan where none meets the limits.
        """
        if self.plan is not None:
            return self.plan, ""
        assert budget is not None
        if self.searcher is not None:
            bounded = None
            if self.limits is not None:
                bounded, budget = Bounded(self.meter, self.limits), self.limits.rows
            fitted = self.searcher.fit(budget, self.planner.seed, bounded)
            return replace(fitted.plan, outputs=self.planner.outputs), fitted.note
        if self.limits is not None:
            return self.planner.within(self.limits, self.meter)
        return self.planner.at(budget)
