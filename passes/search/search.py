"""Search: the plan of least distance from the original within a budget, among all that were judged.

Every method of the library, at its published placement scaled to the budget, and every control is
judged first: the plan found is never worse on the objective than any of them.  Then rounds of new
plans, each judged exactly, by running it:

    drawn at random, thousands of them, those that keep most flow (``flow.py``)
    the best so far, with one or two choices drawn anew
    what Optuna's sampler (TPE) expects to be good after all that was judged

A drawn plan that is surely no better than the best so far is not run on every sample (``race.py``).

The same seed gives the same plan.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import Applied, apply_plan
from tokopt.passes.budget import spent
from tokopt.passes.fit import fit
from tokopt.passes.gradients import Orders, gradient_orders, is_ordered, with_orders
from tokopt.passes.methods.method import GRID, Method
from tokopt.passes.observe import Observation, average_entropies, observe
from tokopt.passes.search.bounded import Bounded
from tokopt.passes.search.draw import Choices, Draw, changed
from tokopt.passes.search.effort import Effort
from tokopt.passes.search.flow import Flow
from tokopt.passes.search.objective import DEFAULT, Measure, Objective
from tokopt.passes.search.race import Distances, raced
from tokopt.passes.search.replay import Replay
from tokopt.passes.search.sized import sized
from tokopt.passes.search.space import Space, Trial
from tokopt.passes.search.stored import Cache, StoredChoices
from tokopt.passes.search.study import FREE, START, Judged, Study, derived

BEST = 4
"""So many of the best plans are changed."""


FLOWING, CHANGED, EXPECTED = 3, 3, 2
"""Plans a round judges, by where they come from."""
ATTEMPTS = 30
BITS = "bits"
"""What a trial's choice of a cache is called."""

FITTED = 3
"""One batch of so many is what orders are measured on: judged there too, they would always win."""


@dataclass(frozen=True)
class Found:
    """The best plan, and everything that was judged, by number; ``whole``: not interrupted."""

    best: Judged
    judged: tuple[Judged, ...]
    measure: Measure
    whole: bool = True


Progress = Callable[[int, int, Judged | None], None]
"""``(done, of how many, best so far)``, behind every trial."""


class Search:
    """A search on calibration ``batches`` for plans of one budget.

    ``bounded``: limits on other numbers than tokens, which every plan judged meets as well.
    ``grid``: of patches, as in ``12x12``, for methods that need one where no graph tells it.
    ``answered``: of each batch, how many tokens at each prompt's end are an answer, int64 ``[B]``.
    ``stored``: how caches may be stored, within limits: a plan chooses that too, and the fewer bits
    it takes the more rows its limit of ``kv`` leaves.  Published plans take the usual one.
    """

    def __init__(
        self,
        facts: Facts,
        batches: Sequence[Mapping[str, Tensor]],
        budget: Fraction,
        methods: Mapping[str, Method],
        *,
        seed: int = 0,
        measure: Measure = DEFAULT,
        storage: str | Path | None = None,
        name: str = "search",
        bounded: Bounded | None = None,
        grid: str | None = None,
        answered: Sequence[Tensor | None] = (),
        stored: StoredChoices | None = None,
    ) -> None:
        self._archived = facts
        if bounded is None:  # limits are counted on the program as it came
            facts = sized(facts, batches)
        methods = {name: one for name, one in methods.items() if "text" not in one.roles}
        self.facts, self.budget, self.methods = facts, budget, methods  # words only where asked for
        self.bounded, self.grid, self.stored = bounded, grid, stored
        self._last: tuple[Plan, Applied] | None = None
        self.seed, self.measure = seed, measure
        seen = [observe(facts, batch) for batch in batches]
        replay = Replay(facts.exported, batches)
        self._entropies = average_entropies(seen)
        self._fitted = len(batches) // FITTED
        self._orders = cache(lambda: self._measured(batches, seen))
        self._objective = Objective(facts, replay, seen, answered, stored)
        self._flow = Flow(facts, replay, seen, methods.__getitem__, seed)
        self._space = Space(facts, methods, budget, seed, grid)
        self._whole: dict[str, Mapping[int, Distances]] = {}
        self._study = Study(name, storage, list(methods), seed)
        self._known = {self._text(j.plan): j for j in self._study.judged() if j.plan}

    def run(self, effort: Effort, progress: Progress = lambda *_: None) -> Found:
        """Judge plans until there are as many as ``effort`` asks for; Ctrl-C ends it early."""
        total = len(self.methods) + effort.trials
        whole = True
        try:
            while True:
                done = len(self._judged())
                missing = self._study.missing()
                if done >= total and not missing:
                    break
                if not self._study.waiting and missing:
                    self._study.propose_again(missing[0])
                elif not self._study.waiting:
                    self._propose(effort, done)
                self._step()
                progress(min(done + 1, total), total, self._best())
        except KeyboardInterrupt:
            whole = False
        best = self._best()
        if best is None:
            if not whole:
                raise KeyboardInterrupt
            why = next((j.why for j in self._judged()), "no plan was tried")
            given = {} if self.bounded is None else self.bounded.limits.given
            asked = ",".join(f"{kind}={limit:g}" for kind, limit in given.items())
            raise BudgetError(
                f"no plan meets the budget {asked or f'{float(self.budget):g}'}: {why}"
            )
        return Found(best, tuple(self._judged()), self.measure, whole)

    def _judged(self) -> list[Judged]:
        return list(self._study.judged())

    def _ranked(self) -> list[Judged]:
        """Return what fits the budget, the best first; of equals the one judged first."""
        fitting = [judged for judged in self._judged() if judged.plan is not None]
        return sorted(fitting, key=lambda j: (j.values[self.measure], j.number))

    def _best(self) -> Judged | None:
        return next(iter(self._ranked()), None)

    def _step(self) -> None:
        trial = self._study.ask()
        start = self._study.start(trial)
        plan, why = None, ""
        try:
            if self.bounded is None:
                plan = self._proposed(trial, start, self.budget)
            else:
                cache = self._cache(trial, start)
                bounded = self.bounded
                if self.stored is not None:
                    bounded = bounded.storing(self.stored.rows(cache))
                propose = partial(self._proposed, trial, start)
                plan = replace(bounded.find(propose, self._apply), cache=cache)
            self._refuse(plan)
        except (UnsupportedError, BudgetError, InputError) as refusal:
            plan, why = None, str(refusal)
        judged = Judged(trial.number, start, plan, {}, why)
        if plan is not None:
            judged = self._judge(judged, plan)
        self._study.tell(trial, self.measure, judged)

    def _cache(self, trial: Trial, start: str) -> Cache:
        """Return how the plan of a trial stores caches."""
        if self.stored is None:
            return ()
        at = self.stored.usual
        if start == FREE:
            at = trial.suggest_int(BITS, 0, len(self.stored.caches) - 1)
        return self.stored.caches[at]

    def _refuse(self, plan: Plan) -> None:
        """Refuse what only the samples' sizes allow: what remembers asks for constant ones."""
        remembers = any(self.methods[stage.method].state for stage in plan.stages)
        if remembers and self._archived is not self.facts:
            apply_plan(self._archived.exported, plan, self.methods.__getitem__)

    def _proposed(self, trial: Trial, start: str, share: Fraction) -> Plan:
        """Return the plan of a trial at a share of the tokens."""
        if start != FREE:
            return self._ordered(self._published(self.methods[start], float(share)))
        plan = self._space.draw(trial, share)
        if plan is None:
            raise BudgetError("the choices do not fit together")
        return self._ordered(plan)

    def _published(self, method: Method, share: float) -> Plan:
        """Return a method's plan; with the grid that was stated where the graph tells none."""
        given = partial(fit, self.facts, method, share, self._entropies, seed=self.seed)
        try:
            return given().plan
        except UnsupportedError:
            if self.grid is None or "places" not in method.needs:
                raise
            return given(options={GRID: self.grid}).plan

    def _measured(
        self, batches: Sequence[Mapping[str, Tensor]], seen: Sequence[Observation]
    ) -> Orders:
        """Measure orders on the first batches; plans with one are judged on the others."""
        if not self._fitted:
            raise UnsupportedError(
                f"an order is measured on other samples than it is judged on, and there are "
                f"{len(batches)} batches",
                expected=f"at least {FITTED} batches of calibration samples",
            )
        return gradient_orders(self.facts, batches[: self._fitted], seen[: self._fitted])

    def _drawn(self, draw: Draw, share: Fraction) -> Plan | None:
        plan = self._space.draw(draw, share)
        try:
            return None if plan is None else self._ordered(plan)
        except UnsupportedError:
            return None

    def _ordered(self, plan: Plan) -> Plan:
        return with_orders(plan, self.methods.__getitem__, self._orders)

    def _share(self) -> Fraction:
        """Return the share of the tokens that new plans are screened at.

        Limits may leave far less than the budget: as much as the plans judged so far spend.
        """
        if self.bounded is None:
            return self.budget
        spends = (spent(self.facts, j.plan) for j in self._ranked() if j.plan is not None)
        return max(spends, default=self.budget)

    def _apply(self, plan: Plan) -> Applied:
        """Return what a plan makes of the program; the last one is kept: it is judged next."""
        key = replace(plan, budget=None, cache=())  # what was asked for changes nothing
        if self._last is None or self._last[0] != key:
            self._last = (key, apply_plan(self.facts.exported, plan, self.methods.__getitem__))
        return self._last[1]

    def _judge(self, judged: Judged, plan: Plan) -> Judged:
        text = self._text(plan)
        if text in self._known:
            return Judged(judged.number, judged.origin, plan, self._known[text].values)
        try:
            applied = self._apply(plan)
            fitted = self._fitted if is_ordered(plan, self.methods.__getitem__) else 0
            rival = self._rival() if judged.origin == FREE else {}
            running = self._objective.distances(applied.exported, fitted, plan.cache)
            seen, values = raced(running, rival, self.measure)
        except (UnsupportedError, InputError) as refusal:
            return Judged(judged.number, judged.origin, None, {}, str(refusal))
        if seen.keys() >= set(range(fitted, len(self._objective.reference))):
            self._whole[text] = seen
        self._known[text] = Judged(judged.number, judged.origin, plan, dict(values))
        return self._known[text]

    def _rival(self) -> Mapping[int, Distances]:
        """Return the distances of the best plan so far, run again where another process judged."""
        best = self._best()
        if best is None or best.plan is None:
            return {}
        text = self._text(best.plan)
        if text not in self._whole:
            exported = apply_plan(self.facts.exported, best.plan, self.methods.__getitem__).exported
            without = self._fitted if is_ordered(best.plan, self.methods.__getitem__) else 0
            far = self._objective.distances(exported, without, best.plan.cache)
            self._whole[text] = dict(far)
        return self._whole[text]

    def _propose(self, effort: Effort, done: int) -> None:
        """Queue the plans of a round."""
        chance = random.Random(derived(self.seed, done))
        for choices in [*self._flowing(effort, chance), *self._changed(chance)]:
            self._study.propose({START: FREE, **choices})
        for _ in range(EXPECTED):
            self._study.propose_expected()

    def _flowing(self, effort: Effort, chance: random.Random) -> list[Choices]:
        fresh, seen, share = effort.fresh, set(self._known), self._share()
        found: list[tuple[float, int, Choices]] = []
        for number in range(effort.draws):
            draw = Draw(chance)
            plan = self._drawn(draw, share)
            if plan is None or self._text(plan) in seen:
                continue
            unknown = [stage for stage in plan.stages if not self._flow.knows(stage)]
            if len(unknown) > fresh:
                continue
            seen.add(self._text(plan))
            try:
                kept = self._flow.retained(plan)
            except (UnsupportedError, InputError):
                continue
            fresh -= len(unknown)
            found.append((-kept, number, draw.choices))
        return [choices for _, _, choices in sorted(found, key=lambda f: f[:2])[:FLOWING]]

    def _changed(self, chance: random.Random) -> list[Choices]:
        best = [
            choices
            for judged in self._ranked()
            if judged.plan is not None and (choices := self._choices(judged.plan)) is not None
        ][:BEST]
        found, share = list[Choices](), self._share()
        for _ in range(ATTEMPTS if best else 0):
            draw = Draw(chance, changed(chance.choice(best), chance))
            cache, plan = self._cache(draw, FREE), self._drawn(draw, share)
            if plan is not None and self._text(replace(plan, cache=cache)) not in self._known:
                found.append(draw.choices)
        return found[:CHANGED]

    def _choices(self, plan: Plan) -> Choices | None:
        """Return choices that draw a plan like this one, its cache with them."""
        found = self._space.choices(plan)
        if found is None or self.stored is None:
            return found
        return {**found, BITS: list(self.stored.caches).index(plan.cache)}

    @staticmethod
    def _text(plan: Plan) -> str:
        return plan.to_toml()
