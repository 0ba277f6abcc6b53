"""Bounded: plans of a search that meet several limits, whoever proposes them.

A trial chooses sites, methods and shapes, never how many rows are left: so the most that meet the
limits are found as for a published method, by bisection over shares of the tokens (``within.py``).
Choices that cannot meet them are refused, and the sampler is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import Applied
from tokopt.passes.budget import spent
from tokopt.passes.budget_report import Work, report_work
from tokopt.passes.fit import Fitted
from tokopt.passes.limits import Limits
from tokopt.passes.within import Meter, StoredRows, fit_within, refuse_without_cache

FINEST = 10**6
"""No share of the tokens has a larger denominator: rows times layers."""


@dataclass(frozen=True)
class Bounded:
    """``limits`` of a search, and the ``meter`` that says what plans spend of them.

    Raises ``UnsupportedError`` for ``kv`` of a model without decoder.
    """

    meter: Meter
    limits: Limits

    def __post_init__(self) -> None:
        """Refuse what no plan can be asked for."""
        refuse_without_cache(self.meter.facts, self.limits)

    def storing(self, stored: Sequence[StoredRows]) -> Bounded:
        """Return the same limits where caches are stored so."""
        return replace(self, meter=replace(self.meter, stored=stored))

    def find(self, propose: Callable[[Fraction], Plan], apply: Callable[[Plan], Applied]) -> Plan:
        """Return the plan with most tokens within the limits; ``propose`` is given their share.

        ``apply`` rewrites the program by a plan, so that what it does can be counted.

        Raises what ``propose`` raises, and ``BudgetError`` naming the nearest plan.
        """

        def fit(share: float) -> Fitted:
            plan = propose(Fraction(share).limit_denominator(FINEST))
            return Fitted(plan, "", spent(self.meter.facts, plan))

        def work(plan: Plan) -> Work:
            return report_work(self.meter.facts.exported, apply(plan), self.meter.inputs)

        found = fit_within(self.meter, self.limits, fit, work).plan
        return replace(found, budget=self.limits.tokens)
