"""Losses: what each stage of a plan costs the answer, measured on batches of inputs.

The plan is run as far as each of its stages in turn: behind stage i, what is told is how far the
answer of the stages up to it is from the original's (``objective.py``), and how much of the
information flow they keep (``flow.py``, an estimate that is read off the original).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.method import Method
from tokopt.passes.observe import observe
from tokopt.passes.reference import without_reuse
from tokopt.passes.search.flow import Flow
from tokopt.passes.search.objective import Objective
from tokopt.passes.search.replay import Replay


@dataclass(frozen=True)
class Loss:
    """Behind a stage: ``distance`` by measure, ``flow`` kept, of all stages up to it.

    ``flow`` is None where it cannot be told without running the plan.
    """

    distance: Mapping[str, float]
    flow: float | None


@dataclass(frozen=True)
class Losses:
    """``stages`` in plan order; ``whole``: with what the plan does to attention too.

    ``flow``: the share that the plan keeps in each layer of the stacks on the way, by role; empty
    where it cannot be told.  ``samples``: on how many items.
    """

    stages: tuple[Loss, ...]
    whole: Mapping[str, float]
    flow: Mapping[str, tuple[float, ...]]
    samples: int


def losses(
    facts: Facts,
    batches: Sequence[Mapping[str, Tensor]],
    plan: Plan,
    methods: Callable[[str], Method],
) -> Losses:
    """Return what a plan loses, stage by stage.  Raises what ``apply_plan`` raises."""
    with torch.no_grad():
        seen = [observe(facts, batch) for batch in batches]
        replay = Replay(facts.exported, batches)
        objective = Objective(facts, replay, seen)
        flow = Flow(facts, replay, seen, methods, plan.seed)

        def distance(of: Plan) -> Mapping[str, float]:
            return objective.distance(apply_plan(facts.exported, of, methods).exported)

        found = []
        for count in range(1, len(plan.stages) + 1):
            some = replace(plan, stages=plan.stages[:count], attention=())
            found.append(Loss(distance(some), _mean(_flow(flow, some))))
        first = without_reuse(plan)  # a first call is a reference
        whole = found[-1].distance if found and not first.attention else distance(first)
        kept = _flow(flow, plan)
    items = sum(len(answer.scores) for answer in objective.reference)
    return Losses(tuple(found), whole, kept, items)


def _flow(flow: Flow, plan: Plan) -> Mapping[str, tuple[float, ...]]:
    try:
        return {role: tuple(kept.tolist()) for role, kept in flow.by_layer(plan).items()}
    except UnsupportedError:  # a score that says nothing where every row is kept
        return {}


def _mean(flow: Mapping[str, tuple[float, ...]]) -> float | None:
    shares = [share for layers in flow.values() for share in layers]
    return sum(shares) / len(shares) if shares else None
