"""Within: the plan with most tokens that meets limits on tokens, caches, operations and latency.

A plan that spends fewer tokens spends less of everything, so it is found by bisection over shares
of the tokens.  Costs are predicted from the original with shortened rows (``macs.py``), nothing is
rewritten on the way but what is found: that says what the selector does on top.  Bytes of a cache
rise with the rows of a layer, at one rate while they wait in 16 bits and at another behind that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

from torch import Tensor

from tokopt.ir.errors import BudgetError, UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.passes.budget import row_count, visual_rows
from tokopt.passes.budget_report import Work
from tokopt.passes.devices import Device
from tokopt.passes.fit import Fitted
from tokopt.passes.limits import Limits
from tokopt.passes.macs import predict_macs
from tokopt.passes.roofline import predict_seconds, selector_seconds

ROUNDING = 1e-12
"""Shares are sums of floats: a plan of exactly the share that is asked for meets it."""


class StoredRows(Protocol):
    """How one layer's cache is stored, as far as a budget asks."""

    def share(self, rows: float) -> float:
        """Return the bytes of so many rows against 16 bits, as many of them waiting as may."""


def kv_share(rows: Sequence[int], of: int, stored: Sequence[StoredRows] = ()) -> float:
    """Return the bytes of each layer's visual rows against all ``of`` of them in 16 bits.

    ``stored``: how each layer stores its cache; empty where that is in 16 bits.
    """
    shares = [one.share(n) for one, n in zip(stored, rows, strict=True)] if stored else []
    spent = (n * share for n, share in zip(rows, shares or [1.0] * len(rows), strict=True))
    return sum(spent) / (of * len(rows))


@dataclass(frozen=True)
class Meter:
    """Says what plans for a program spend.  ``device`` is needed where latency is limited.

    ``stored``: how each layer of the decoder stores its cache; empty where that is in 16 bits.
    """

    facts: Facts
    inputs: Mapping[str, Tensor]
    device: Device | None = None
    stored: Sequence[StoredRows] = ()

    @cached_property
    def original(self) -> tuple[int, float]:
        """The original's multiply-accumulates, and its seconds (0 without a device)."""
        return self._spent(Plan(()))

    def predicted(self, plan: Plan) -> dict[str, float]:
        """Return ``kv``, and ``flops`` and ``latency`` of what a plan leaves of the original."""
        macs, seconds = self._spent(plan)
        return {"kv": self._kv(plan), "flops": macs / self.original[0], "latency": seconds}

    def counted(self, plan: Plan, work: Work) -> dict[str, float]:
        """Return the same with what the plan's rewrite does, the selector included."""
        seconds = self._spent(plan)[1]
        if self.device is not None:
            seconds += selector_seconds(work.selector, self.device)
        return {"kv": self._kv(plan), "flops": work.total, "latency": seconds}

    def meets(self, plan: Plan, room: Mapping[str, float]) -> bool:
        """Return whether a plan is predicted to spend at most what there is of each kind."""
        if "kv" in room and self._kv(plan) > room["kv"] * (1 + ROUNDING):
            return False
        if room.keys() <= {"kv"}:
            return True  # operations need not be counted
        spent = self.predicted(plan)
        return all(spent[kind] <= limit for kind, limit in room.items() if kind != "kv")

    def wanted(self, limits: Limits) -> dict[str, float]:
        """Return the limits of ``kv`` and ``flops``, and of ``latency`` in seconds, there are."""
        kinds = [kind for kind in limits.given if kind != "tokens"]
        found = {kind: limits.given[kind] for kind in kinds}
        if "latency" in found and limits.relative:
            found["latency"] *= self.original[1]
        return found

    def _kv(self, plan: Plan) -> float:
        rows, of = visual_rows(self.facts, plan), row_count(self.facts.consumer)
        cached = self.facts.consumer.role.startswith("decoder")
        return kv_share(rows, of, self.stored if cached else ())

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
        added = {kind: limit for kind, limit in wanted.items() if kind != "kv"}
        if not added:
            return found
        predicted, exact = meter.predicted(found.plan), meter.counted(found.plan, work(found.plan))
        if all(exact[kind] <= limit for kind, limit in added.items()):
            return found
        # what the selector does comes on top: leave room for it and look again
        for kind, limit in added.items():
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
    nearest = fit(most)
    if meter.meets(nearest.plan, room):
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
        if meter.meets(found.plan, room):
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
    selector = "" if wanted.keys() <= {"kv"} else ", without the selector"
    return BudgetError(
        f"no plan of this method meets {asked}",
        expected=f"at least {reached}{selector}, of the nearest plan: {stages}",
        hint="a method placed earlier, in the tower, leaves less to do"
        + (", a cache of fewer bits (--kv-bits) fewer bytes" if "kv" in wanted else ""),
    )
