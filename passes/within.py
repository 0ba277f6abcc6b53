"""Within: the plan with most tokens that meets limits on tokens, caches, operations and latency.

A plan that spends fewer tokens spends less of everything, so it is found by bisection over shares
of the tokens.  Costs are predicted from the original with shortened rows (``macs.py``), nothing is
rewritten on the way but what is found: that says what the selector does on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from tokopt.ir.errors import BudgetError, UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.passes.budget import row_count
from tokopt.passes.budget_report import Work
from tokopt.passes.devices import Device
from tokopt.passes.fit import Fitted
from tokopt.passes.limits import Limits
from tokopt.passes.macs import predict_macs
from tokopt.passes.roofline import predict_seconds, selector_seconds


@dataclass(frozen=True)
class Meter:
    """Says what plans for a program spend.  ``device`` is needed where latency is limited."""

    facts: Facts
    inputs: Mapping[str, Tensor]
    device: Device | None = None

    @cached_property
    def original(self) -> tuple[int, float]:
        """The original's multiply-accumulates, and its seconds (0 without a device)."""
        return self._spent(Plan(()))

    def predicted(self, plan: Plan) -> dict[str, float]:
        """Return ``flops`` and ``latency`` of what a plan leaves of the original."""
        macs, seconds = self._spent(plan)
        return {"flops": macs / self.original[0], "latency": seconds}

    def counted(self, plan: Plan, work: Work) -> dict[str, float]:
        """Return the same with what the plan's rewrite does, the selector included."""
        seconds = self._spent(plan)[1]
        if self.device is not None:
            seconds += selector_seconds(work.selector, self.device)
        return {"flops": work.total, "latency": seconds}

    def wanted(self, limits: Limits) -> dict[str, float]:
        """Return the limits of ``flops``, and of ``latency`` in seconds, that there are."""
        kinds = [kind for kind in limits.given if kind in ("flops", "latency")]
        found = {kind: limits.given[kind] for kind in kinds}
        if "latency" in found and limits.relative:
            found["latency"] *= self.original[1]
        return found

    def _spent(self, plan: Plan) -> tuple[int, float]:
        seconds = 0.0
        if self.device is not None:
            seconds = predict_seconds(self.facts, plan, self.inputs, self.device)
        return predict_macs(self.facts, plan, self.inputs), seconds


def fit_within(
    meter: Meter,
    limits: Limits,
    fit: Callable[[float], Fitted],
    work: Callable[[Plan], Work],
) -> Fitted:
    """Return the plan with most tokens that meets all limits.

    ``fit`` places a method within a share of the tokens; ``work`` counts what a plan's rewrite
    does.  Raises ``BudgetError`` naming the nearest plan where none meets them, and
    ``UnsupportedError`` for ``kv`` of a model without decoder.
    """
    refuse_without_cache(meter.facts, limits)
    wanted = meter.wanted(limits)
    room = dict(wanted)
    while True:
        found = _most(meter, limits.rows, fit, room, wanted)
        predicted = meter.predicted(found.plan)
        exact = meter.counted(found.plan, work(found.plan)) if wanted else predicted
        if all(exact[kind] <= limit for kind, limit in wanted.items()):
            return found
        # what the selector does comes on top: leave room for it and look again
        for kind, limit in wanted.items():
            room[kind] = min(room[kind], limit - max(0.0, exact[kind] - predicted[kind]))


def refuse_without_cache(facts: Facts, limits: Limits) -> None:
    """Refuse ``kv`` of a model without decoder, with ``UnsupportedError``."""
    if limits.kv is not None and not facts.consumer.role.startswith("decoder"):
        raise UnsupportedError(
            "kv= limits the cache of a decoder, and this model has none",
            expected=f"tokens=, flops= or latency=, of {facts.consumer.role}",
        )


def _most(
    meter: Meter,
    most: float,
    fit: Callable[[float], Fitted],
    room: Mapping[str, float],
    wanted: Mapping[str, float],
) -> Fitted:
    """Bisect over shares of the tokens, one token of one layer apart.

    ``room`` is what of the limits ``wanted`` the selector leaves.
    """

    def meets(fitted: Fitted) -> bool:
        spent = meter.predicted(fitted.plan) if room else {}
        return all(spent[kind] <= limit for kind, limit in room.items())

    nearest = fit(most)
    if meets(nearest):
        return nearest
    consumer = meter.facts.consumer
    steps = row_count(consumer) * len(consumer.stack.layers)
    low, high, best = 0, round(most * steps), None
    while high - low > 1:
        middle = (low + high) // 2
        try:
            found = fit(middle / steps)
        except BudgetError:  # fewer rows than the method can leave
            low = middle
            continue
        if meets(found):
            best, low = found, middle
        else:
            nearest, high = found, middle
    if best is None:
        raise _infeasible(meter, nearest, wanted)
    return best


def _infeasible(meter: Meter, nearest: Fitted, wanted: Mapping[str, float]) -> BudgetError:
    spent = meter.predicted(nearest.plan)
    asked = ", ".join(f"{kind}={limit:.4g}" for kind, limit in wanted.items())
    reached = ", ".join(f"{kind}={spent[kind]:.4g}" for kind in wanted)
    stages = "; ".join(f"{s.method} at {s.site} keeps {s.keep}" for s in nearest.plan.stages)
    return BudgetError(
        f"no plan of this method meets {asked}",
        expected=f"at least {reached}, without the selector, of the nearest plan: {stages}",
        hint="a method placed earlier, in the tower, leaves less to do",
    )
