"""Reference: the call before the one that is judged, where rows of a tower are reused.

A program that reuses rows is judged on what a reference gave of *another* picture: of the same one
it would not matter which rows are computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tokopt.ir.facts import Facts
from tokopt.ir.memory import Memory, next_call, with_memory
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import Applied
from tokopt.passes.budget_report import taken
from tokopt.passes.reused import AGE, reused_of, reuses
from tokopt.passes.run_program import run_program

NOISE = 0.5
"""How far the other picture is from the given one, in standard deviations of its values."""


def without_reuse(plan: Plan) -> Plan:
    """Return a plan in which every row is computed: that of the reference."""
    left = tuple(entry for entry in plan.attention if entry not in reuses(plan))
    return replace(plan, attention=left)


def states_in(memory: tuple[Memory, ...]) -> tuple[Memory, ...]:
    """Return what a reference gives and stages do not: the counter, and all that stands behind."""
    at = next((i for i, one in enumerate(memory) if one.input == AGE), len(memory))
    return memory[at:]


def with_reference(
    facts: Facts, plan: Plan, applied: Applied, inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return inputs with what is remembered: zeros, or what a reference gave of another picture.

    What is given already stays.
    """
    given = with_memory(applied.memory, inputs)
    if applied.reference is None or AGE in inputs:
        return given
    earlier = {**given, **other_picture(facts, plan, inputs)}
    asked = taken(applied.reference, earlier)
    outputs = run_program(applied.reference.exported, asked, full=True)
    found = dict(zip(applied.reference.renewed[::-1], outputs[::-1], strict=False))
    return {**given, **next_call(states_in(applied.memory), found)}


def other_picture(facts: Facts, plan: Plan, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what the tower that reuses rows is made of, with seeded noise added."""
    reused = reused_of(facts, plan)
    assert reused is not None
    entry = reused.layers[0].blocks[0].input
    noise = torch.Generator().manual_seed(0)
    found = {}
    for node in facts.exported.graph.find_nodes(op="placeholder"):
        value = inputs.get(node.name)
        if value is None or not value.is_floating_point():
            continue
        if not facts.dependence.reaches(node, entry):
            continue
        drawn = torch.randn(value.shape, generator=noise).to(value)
        found[node.name] = value + NOISE * value.float().std().to(value) * drawn
    return found
