"""A search: never worse than what it starts from, repeatable, resumable, shared, interruptible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from testsuite.passes.search.searched import FEW, batches, llava
from torch import cosine_similarity

from tokopt.ir.errors import BudgetError, InputError
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.gradients import gradient_orders, with_orders
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS, find_method
from tokopt.passes.observe import observe
from tokopt.passes.search.effort import EFFORTS, Effort
from tokopt.passes.search.search import Found, Search
from tokopt.passes.search.study import Judged

SHORT = Effort(trials=6, draws=40, fresh=2)


def search(
    storage: str | Path | None = None, methods: Mapping[str, Method] = FEW, seed: int = 0
) -> Search:
    budget = Fraction(1, 3)
    return Search(llava().facts, batches()[:1], budget, methods, seed=seed, storage=storage)


@pytest.fixture(scope="module")
def found() -> Found:
    return search().run(SHORT)


def values(found: Found) -> list[tuple[int, str, float | None]]:
    return [(j.number, j.origin, j.values.get(found.measure)) for j in found.judged]


def test_every_method_is_judged_first_and_none_is_better(found: Found) -> None:
    assert [j.origin for j in found.judged[: len(FEW)]] == list(FEW)
    assert all(j.origin == "search" for j in found.judged[len(FEW) :])
    assert len(found.judged) == len(FEW) + SHORT.trials
    best = found.best.values[found.measure]
    assert all(best <= j.values[found.measure] for j in found.judged if j.plan is not None)
    assert found.best.plan is not None and found.whole


def test_the_same_seed_finds_the_same_and_a_killed_search_goes_on(
    found: Found, tmp_path: Path
) -> None:
    """The journal after some trials is what a kill leaves; the rest is as without it."""
    journal = tmp_path / "search.log"
    search(journal).run(Effort(2, SHORT.draws, SHORT.fresh))
    done: list[int] = []
    again = search(journal).run(SHORT, lambda n, of, best: done.append(n))
    assert len(done) == SHORT.trials - 2  # nothing was judged twice
    assert values(again) == values(found)
    assert again.best.plan == found.best.plan


def test_a_method_whose_judge_was_killed_is_judged_again(found: Found, tmp_path: Path) -> None:
    journal = tmp_path / "search.log"
    killed = search(journal)
    killed._study.start(killed._study.ask())  # taken, and never told
    again = search(journal).run(Effort(0, SHORT.draws, SHORT.fresh))
    assert sorted(j.origin for j in again.judged) == sorted(FEW)


@pytest.mark.exhaustive
def test_two_processes_share_a_storage(tmp_path: Path, found: Found) -> None:
    """Two searches take turns on one journal: together they judge as many, and agree."""
    journal = tmp_path / "search.log"
    first, second = search(journal), search(journal)
    total = len(FEW) + SHORT.trials
    while len(first._judged()) < total:
        for one in (first, second):
            if not one._study.waiting and len(one._judged()) >= len(FEW):
                one._propose(SHORT, len(one._judged()))
            one._step()
    ends = [one.run(SHORT) for one in (first, second)]
    assert ends[0].best.plan == ends[1].best.plan
    origins = [j.origin for j in ends[0].judged]
    assert all(origins.count(name) == 1 for name in FEW)


def test_ctrl_c_keeps_the_best_so_far(tmp_path: Path) -> None:
    def stop(done: int, of: int, best: Judged | None) -> None:
        if done == 3:
            raise KeyboardInterrupt

    found = search().run(SHORT, stop)
    assert not found.whole and len(found.judged) == 3 and found.best.plan is not None


def test_before_anything_was_judged_ctrl_c_is_ctrl_c(monkeypatch: pytest.MonkeyPatch) -> None:
    one = search()

    def stop() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(one, "_step", stop)
    with pytest.raises(KeyboardInterrupt):
        one.run(SHORT)


def test_a_storage_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="storage"):
        search(tmp_path / "no" / "folder" / "search.log")


def test_efforts_grow() -> None:
    trials = [EFFORTS[name].trials for name in ("quick", "default", "thorough")]
    assert trials == sorted(trials) and EFFORTS["quick"].with_trials(3).trials == 3


def test_an_order_is_judged_on_other_samples_than_it_was_measured_on() -> None:
    """Else it wins: what it was fitted to is what it would be asked."""
    methods, facts = {"normgrad": METHODS["normgrad"]}, llava().facts
    given, none = [*batches(), batches()[0]], Effort(0, 0, 0)
    alone = Search(facts, given[:2], Fraction(1, 3), methods)
    with pytest.raises(BudgetError, match="measured on other samples than it is judged on"):
        alone.run(none)
    search = Search(facts, given, Fraction(1, 3), methods)
    (judged,) = search.run(none).judged
    assert judged.plan is not None
    applied = apply_plan(facts.exported, judged.plan, find_method)
    pairs = zip(
        search._objective.reference, search._objective.answers(applied.exported), strict=True
    )
    each = [(1 - cosine_similarity(a.state[:, 0], b.state[:, 0])) for a, b in pairs]
    assert judged.values["cosine"] == pytest.approx(float(torch.cat(each[1:]).mean()))
    seen = [observe(facts, given[0])]
    wanted = with_orders(
        fit_plan(judged.plan), find_method, lambda: gradient_orders(facts, given[:1], seen)
    )
    assert judged.plan.stages == wanted.stages


def fit_plan(plan: Plan) -> Plan:
    """Return a plan without the orders it has."""
    return replace(plan, stages=tuple(replace(stage, options={}) for stage in plan.stages))
