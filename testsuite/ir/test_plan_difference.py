"""Plans differ in what was changed, and in nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tokopt.ir.plan import Attending, Plan, Stage
from tokopt.ir.plan_difference import Change, plan_difference

TOWER, DECODER = Stage("vision:3", "vtc_cls", 14), Stage("decoder:2", "fastv", 7, {"layers": 2})
PLAN = Plan((TOWER, DECODER), 0.1, attention=(Attending("decoder:1", "var", {"p": 0.5}),))


def test_a_plan_does_not_differ_from_its_own_text() -> None:
    assert plan_difference(PLAN, Plan.from_toml(PLAN.to_toml())).same


@pytest.mark.parametrize(
    ("other", "change"),
    [
        (replace(PLAN, budget=None), Change("budget", 0.1, None)),
        (replace(PLAN, seed=1), Change("seed", 0, 1)),
        (replace(PLAN, outputs="kept"), Change("outputs", "full", "kept")),
    ],
)
def test_fields_of_the_plan_are_told(other: Plan, change: Change) -> None:
    found = plan_difference(PLAN, other)
    assert found.fields == (change,) and not found.entries and not found.order


@pytest.mark.parametrize(
    ("stage", "change"),
    [
        (replace(DECODER, keep=5), Change("keep", 7, 5)),
        (replace(DECODER, method="dart"), Change("method", "fastv", "dart")),
        (replace(DECODER, site="decoder:3"), Change("site", "decoder:2", "decoder:3")),
        (replace(DECODER, options={"layers": 3}), Change("options.layers", 2, 3)),
        (replace(DECODER, options={}), Change("options.layers", 2, None)),
        (replace(DECODER, until="decoder:4"), Change("until", None, "decoder:4")),
        (replace(DECODER, quota="image"), Change("quota", "joint", "image")),
    ],
)
def test_a_stage_with_another_value_is_one_change(stage: Stage, change: Change) -> None:
    found = plan_difference(PLAN, replace(PLAN, stages=(TOWER, stage)))
    (entry,) = found.entries
    assert (entry.before, entry.after, entry.changes) == (DECODER, stage, (change,))
    assert not found.fields and not found.order


def test_stages_that_one_plan_lacks_are_added_or_removed() -> None:
    shorter = replace(PLAN, stages=(DECODER,))
    (gone,) = plan_difference(PLAN, shorter).entries
    (come,) = plan_difference(shorter, PLAN).entries
    assert (gone.before, gone.after) == (TOWER, None)
    assert (come.before, come.after) == (None, TOWER)


def test_another_order_and_another_attention_are_differences() -> None:
    turned = plan_difference(PLAN, replace(PLAN, stages=(DECODER, TOWER)))
    assert turned.order and not turned.entries and not turned.same
    (entry,) = plan_difference(PLAN, replace(PLAN, attention=())).entries
    assert entry.kind == "attention" and entry.after is None
