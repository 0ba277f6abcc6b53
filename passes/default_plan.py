"""Default plan: one method at a budget, chosen by what the model has.  No search, no promise.

What is tried, in order; the first that is legal and meets the budget is taken:

    tower and decoder   vtc_cls at the tower's end: one cut, before the decoder sees anything
                        divprune at the tower's end, else before the decoder: it reads no attention
    tower alone         flowcut: it cuts between layers
                        vtc_cls: it cuts at the end, where nothing is left to save, and must move
    either              stride, which reads no attention

Of the published methods vtc_cls costs least at its quality (one row of attention per layer).  In
towers without class token attention tells less: on the second model of ``testsuite/models`` a tenth
chosen by flowcut answers half of the questions, by divprune all that the whole picture does.
The search exists to do better, and reports by how much.
"""

from __future__ import annotations

from tokopt.ir.errors import BudgetError, UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.passes.fit import Entropies, Fitted, fit
from tokopt.passes.methods.asked import asked_method

WITH_DECODER = ("vtc_cls", "divprune", "stride")
TOWER_ALONE = ("flowcut", "vtc_cls", "stride")


def default_plan(
    facts: Facts,
    budget: float,
    method: str | None = None,
    entropies: Entropies | None = None,
    seed: int = 0,
) -> Plan:
    """Return a plan that spends at most ``budget``, by ``method`` or the default one.

    ``method`` may hold options: ``downsample{grid=12x12}``.  Raises what ``fit`` raises; without a
    method, the last refusal once all are refused: the last method asks for least.
    """
    return default_fit(facts, budget, method, entropies, seed).plan


def default_fit(
    facts: Facts,
    budget: float,
    method: str | None = None,
    entropies: Entropies | None = None,
    seed: int = 0,
) -> Fitted:
    """Return the same plan with its note and what it spends."""
    names = (method,) if method else _preferred(facts)
    refusals: list[UnsupportedError | BudgetError] = []
    for name in names:
        try:
            chosen, options = asked_method(name)
            return fit(facts, chosen, budget, entropies, seed=seed, options=options)
        except (UnsupportedError, BudgetError) as refusal:
            refusals.append(refusal)
    raise refusals[-1]


def _preferred(facts: Facts) -> tuple[str, ...]:
    return WITH_DECODER if facts.consumer.merge is not None else TOWER_ALONE
