"""A search within several limits: all that is judged meets them, what cannot is told."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import every_input
from testsuite.passes.search.searched import batches, llava

from tokopt.ir.errors import BudgetError, UnsupportedError
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import spent
from tokopt.passes.budget_report import report_work
from tokopt.passes.devices import Device
from tokopt.passes.fit import fit
from tokopt.passes.limits import Limits
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.search.bounded import Bounded
from tokopt.passes.search.effort import Effort
from tokopt.passes.search.search import Found, Search
from tokopt.passes.within import Meter

FEW = {name: METHODS[name] for name in ("fastv", "stride")}
SHORT = Effort(trials=2, draws=4, fresh=2)
BOTH = Limits(tokens=0.9, flops=0.8, latency=0.85)


def bounded(limits: Limits) -> Bounded:
    slow = Device("slow", {torch.float32: 1e9}, 1e9)
    return Bounded(Meter(llava().facts, batches()[0], slow), limits)


def search(limits: Limits) -> Search:
    budget = Fraction(str(limits.rows))
    return Search(llava().facts, batches()[:1], budget, FEW, bounded=bounded(limits))


@pytest.fixture(scope="module")
def found() -> Found:
    return search(BOTH).run(SHORT)


def spends(plan: Plan) -> dict[str, float]:
    facts, inputs = llava().facts, batches()[0]
    applied = apply_plan(facts.exported, plan, FEW.__getitem__)
    work = report_work(facts.exported, applied, inputs)
    return {"tokens": float(spent(facts, plan)), **bounded(BOTH).meter.counted(plan, work)}


@pytest.mark.exhaustive
def test_every_plan_that_is_judged_meets_all_limits_by_its_rewritten_graph(found: Found) -> None:
    wanted = {**BOTH.given, **bounded(BOTH).meter.wanted(BOTH)}
    plans = [judged.plan for judged in found.judged if judged.plan is not None]
    drawn = [j for j in found.judged if j.origin == "search" and j.plan is not None]
    assert len(plans) > len(FEW) and drawn
    for plan in plans:
        amounts = spends(plan)
        assert all(amounts[kind] <= limit for kind, limit in wanted.items())
        assert plan.budget == BOTH.tokens
    free = fit(llava().facts, FEW["fastv"], 0.9).plan
    assert spends(free)["flops"] > 0.8, "the limits bind nothing"


@pytest.mark.exhaustive
def test_every_method_is_judged_within_the_limits_and_none_is_better(found: Found) -> None:
    assert [j.origin for j in found.judged[: len(FEW)]] == list(FEW)
    best = found.best.values[found.measure]
    assert all(best <= j.values[found.measure] for j in found.judged if j.plan is not None)


def test_limits_that_no_plan_meets_name_a_nearest_one() -> None:
    with pytest.raises(BudgetError, match=r"the budget flops=0\.001: ") as error:
        search(Limits(flops=0.001)).run(Effort(0, 1, 1))
    assert "nearest plan" in str(error.value) and "keeps" in str(error.value)


def test_a_search_cannot_limit_the_cache_of_a_model_without_decoder() -> None:
    family = analysed("dino")
    with pytest.raises(UnsupportedError, match="cache of a decoder"):
        Bounded(Meter(family.facts, every_input(family)[0]), Limits(kv=0.5))
