"""Every plan that is drawn is legal, within the budget and within one row of it."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from testsuite.passes.search.searched import FEW, llava

from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import row_count, spent
from tokopt.passes.methods.registry import METHODS, find_method
from tokopt.passes.search.draw import Draw, changed
from tokopt.passes.search.space import Space, falling


def drawn(space: Space, count: int) -> list[Plan]:
    chance = random.Random(0)
    return [p for _ in range(count) if (p := space.draw(Draw(chance))) is not None]


@pytest.mark.parametrize("budget", [Fraction(1, 2), Fraction(1, 10)])
def test_plans_spend_the_budget_but_for_less_than_a_row(budget: Fraction) -> None:
    facts = llava().facts
    plans = drawn(Space(facts, FEW, budget), 60)
    assert len(plans) > 20
    consumer = facts.consumer
    layers = len(consumer.stack.layers)
    for plan in plans:
        assert spent(facts, plan) <= budget
        assert budget - spent(facts, plan) < Fraction(layers, layers * row_count(consumer))
        counts = [stage.keep for stage in plan.stages]
        assert counts == sorted(counts, reverse=True)


def test_plans_can_be_applied() -> None:
    for plan in drawn(Space(llava().facts, FEW, Fraction(1, 4)), 6):
        apply_plan(llava().facts.exported, plan, find_method)


def test_choices_of_a_plan_draw_its_stages_again() -> None:
    space = Space(llava().facts, FEW, Fraction(1, 4))
    wanted = Plan((Stage("vision:end", "vtc_cls", 12), Stage("decoder:2", "fastv", 6)))
    choices = space.choices(wanted)
    assert choices is not None
    again = space.draw(Draw(random.Random(1), choices))
    assert again is not None
    assert [(s.site, s.method) for s in again.stages] == [(s.site, s.method) for s in wanted.stages]


def test_choices_have_the_options_that_are_drawn_and_no_others() -> None:
    space = Space(llava().facts, FEW, Fraction(1, 4))
    stage = Stage("vision:end", "vtc_cls", 9, {"start": 0})
    choices = space.choices(Plan((stage,)))
    assert choices is not None
    again = space.draw(Draw(random.Random(1), choices))
    assert again is not None and again.stages[0].options == stage.options
    assert space.choices(Plan((Stage("vision:end", "vtc_cls", 9, {"start": 1}),))) is None
    assert space.choices(Plan((Stage("nowhere:1", "vtc_cls", 9),))) is None


def test_options_and_schedules_are_drawn_and_stay_within_the_budget() -> None:
    facts, budget = llava().facts, Fraction(1, 4)
    methods = {name: METHODS[name] for name in ("vtc_cls", "mmtok")}
    plans = drawn(Space(facts, methods, budget), 80)
    stages = [stage for plan in plans for stage in plan.stages]
    tried = {(s.method, name, value) for s in stages for name, value in s.options.items()}
    wanted = {(m.name, k, v) for m in methods.values() for k, vs in m.tunes.items() for v in vs}
    assert tried == wanted and any(not stage.options for stage in stages)
    assert all(spent(facts, plan) <= budget for plan in plans)


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("linear", [9, 7, 5, 3, 1]),
        ("cosine", [9, 7.828, 5, 2.172, 1]),  # 1 + 8 (1 + cos 45 degrees) / 2 = 7.828
        ("step", [9, 9, 1, 1, 1]),
    ],
)
def test_counts_fall_in_the_shape_of_a_schedule(form: str, wanted: list[float]) -> None:
    assert falling(form, 9, 5) == pytest.approx(wanted, abs=1e-3)


def test_a_schedule_is_one_method_at_ever_later_sites() -> None:
    given = {
        "form": "linear",
        "site0": "decoder:0",
        "method0 at decoder:0": "stride",
        "shape0": 4.0,
    }
    space = Space(llava().facts, FEW, Fraction(1, 2))
    plan = space.draw(Draw(random.Random(0), {**given, "steps": 3}))
    assert plan is not None and len(plan.stages) > 1
    assert {stage.method for stage in plan.stages} == {"stride"}
    depths = [llava().facts.find_site(stage.site)[1].depth for stage in plan.stages]
    assert depths == sorted(set(depths)) and depths[0] == 0
    counts = [stage.keep for stage in plan.stages]
    assert counts == sorted(set(counts), reverse=True)


def test_changing_leaves_most_choices() -> None:
    given = {f"choice{n}": n for n in range(9)}
    for seed in range(5):
        left = changed(given, random.Random(seed))
        assert left.items() <= given.items() and 7 <= len(left) <= 8
