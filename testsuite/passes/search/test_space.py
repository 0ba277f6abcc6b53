"""Every plan that is drawn is legal, within the budget and within one row of it."""

from __future__ import annotations

import random
from fractions import Fraction

import pytest
from testsuite.passes.search.searched import FEW, llava

from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import row_count, spent
from tokopt.passes.methods.registry import find_method
from tokopt.passes.search.draw import Draw, changed
from tokopt.passes.search.space import Space


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


def test_a_method_with_options_or_at_no_known_site_has_no_choices() -> None:
    space = Space(llava().facts, FEW, Fraction(1, 4))
    assert space.choices(Plan((Stage("vision:end", "vtc_cls", 9, {"start": 1}),))) is None
    assert space.choices(Plan((Stage("nowhere:1", "vtc_cls", 9),))) is None


def test_changing_leaves_most_choices() -> None:
    given = {f"choice{n}": n for n in range(9)}
    for seed in range(5):
        left = changed(given, random.Random(seed))
        assert left.items() <= given.items() and 7 <= len(left) <= 8
