"""Planner: the plan of a published method for what was asked: a share of the tokens, or limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Outputs, Plan, Quota
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget_report import Work, report_work
from tokopt.passes.default_plan import default_fit
from tokopt.passes.devices import CPU, Device, find_device
from tokopt.passes.fit import Fitted
from tokopt.passes.gradients import Orders, gradient_orders, with_orders
from tokopt.passes.limits import Limits
from tokopt.passes.methods.registry import find_method
from tokopt.passes.observe import Observation, observe
from tokopt.passes.quotas import with_quota
from tokopt.passes.rewrites.asked import asked_attention
from tokopt.passes.within import Meter, fit_within
from tokopt.targets.base import Target


@dataclass(frozen=True)
class Planner:
    """``method``: the default ones where None; the rest as in ``compile``."""

    facts: Facts
    given: Mapping[str, Tensor]
    method: str | None
    attention: str | None
    quota: Quota
    seed: int
    outputs: Outputs

    def at(self, budget: float) -> tuple[Plan, str]:
        """Return the plan of a share of the tokens, and what is to be said of it."""
        if budget == 1 and self.attention is not None and self.method is None:
            return self._whole(Plan(()), budget), ""  # no row is to be dropped
        fitted = self._fit(budget)
        return self._whole(fitted.plan, budget), fitted.note

    def within(self, limits: Limits, meter: Meter) -> tuple[Plan, str]:
        """Return the plan with most tokens within limits.  Raises what ``fit_within`` raises."""
        fitted = fit_within(meter, limits, self._fit, self._work)
        return self._whole(fitted.plan, limits.tokens), fitted.note

    @cached_property
    def _seen(self) -> Observation:
        return observe(self.facts, self.given)

    @cached_property
    def _orders(self) -> Orders:
        return gradient_orders(self.facts, [self.given], [self._seen])

    def _fit(self, budget: float) -> Fitted:
        fitted = default_fit(self.facts, budget, self.method, self._seen.entropies, self.seed)
        return replace(fitted, plan=with_orders(fitted.plan, find_method, lambda: self._orders))

    def _whole(self, plan: Plan, asked: float | None) -> Plan:
        stages = with_quota(self.facts, plan, self.quota).stages
        rewrites = () if self.attention is None else asked_attention(self.facts, self.attention)
        return Plan(stages, asked, self.seed, self.outputs, rewrites)

    def _work(self, plan: Plan) -> Work:
        """Return what the rewrite of a plan does."""
        applied = apply_plan(self.facts.exported, self._whole(plan, None), find_method)
        return report_work(self.facts.exported, applied, self.given)


def device_for(limits: Limits | None, target: Target, name: str | None) -> Device | None:
    """Return the device whose latency is predicted; None where none is limited and none named.

    Raises ``InputError`` where a target on a GPU does not say which one, and where it makes machine
    code that the named device does not run.
    """
    if name is not None:
        device = find_device(name)
        if target.generation is not None and target.generation != device.generation:
            raise InputError(
                f"{target.name} makes machine code for {target.generation or 'this CPU'}, and the "
                f"device {name} is {device.generation or 'a CPU'}",
                expected="a device that runs it",
                hint="compile on such a machine, or for onnxruntime-cuda or onnxruntime-cpu, whose "
                "files hold no machine code",
            )
        return device
    if limits is None or limits.latency is None:
        return None
    if "cuda" in target.name:
        raise InputError(
            f"latency on {target.name} depends on the device",
            expected="--device with a name, such as h100",
        )
    return find_device(CPU)
