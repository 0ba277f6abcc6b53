"""Space: the plans a search draws from: sites, methods and how many rows each stage leaves.

A plan has one to three stages.  Of each a trial chooses the site and the method; of all but the
last also a *shape* ``f >= 1``: the stage leaves ``f`` times the rows of the last.  How many the
last leaves is not chosen but found: as many as the budget allows.  Then the stages are raised one
by one, the first first, so a plan spends at most the budget and is within one row of it.  Stages
that would leave every row there is are left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Protocol

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site
from tokopt.passes.budget import row_count, rows_arriving, spent
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.order import ORDER
from tokopt.passes.placed import stack_places
from tokopt.passes.tower_tap import feeder_of

STAGES = 3
WIDEST = 16.0
"""The largest shape: what a stage leaves, over what the last leaves."""


class Trial(Protocol):
    """What chooses: an Optuna trial, or anything with these three."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return a number in ``low .. high``."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number between two, even in its logarithm."""

    def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
        """Return one of the choices."""


@dataclass(frozen=True)
class Place:
    """A legal site and the methods that can be placed there."""

    stack: TokenStack
    site: Site
    methods: tuple[str, ...]


class Space:
    """All plans of a program within a budget."""

    def __init__(
        self, facts: Facts, methods: Mapping[str, Method], budget: Fraction, seed: int = 0
    ) -> None:
        self.facts, self.budget, self.seed = facts, budget, seed
        self.places = {place.site.name: place for place in _places(facts, methods)}
        if not self.places:
            raise UnsupportedError(
                "no method can be placed anywhere", hint="tokopt inspect shows the barriers"
            )

    def draw(self, trial: Trial, budget: Fraction | None = None) -> Plan | None:
        """Return the plan a trial chooses; None where its choices do not fit together.

        ``budget``: another share of the tokens than the space's own.
        """
        chosen: dict[str, tuple[str, float]] = {}
        count = trial.suggest_int("stages", 1, STAGES)
        for number in range(count):
            site = trial.suggest_categorical(f"site{number}", list(self.places))
            known = list(self.places[site].methods)
            method = trial.suggest_categorical(f"method{number} at {site}", known)
            shape = trial.suggest_float(f"shape{number}", 1.0, WIDEST, log=True)
            if site in chosen:
                return None
            chosen[site] = (method, shape)
        order = sorted(chosen, key=self._position)
        places = [self.places[site] for site in order]
        if any(a.stack is b.stack and a.site.unit != b.site.unit for a, b in pairwise(places)):
            return None  # rows leave in groups of other sizes
        shapes = [chosen[site][1] for site in order]
        widest = [max(shapes[at:]) for at in range(len(order))]  # counts never grow with depth
        stages = [(site, chosen[site][0]) for site in order]
        return self._fitted(stages, [*widest[:-1], 1.0], budget or self.budget)

    def choices(self, plan: Plan) -> dict[str, int | float | str] | None:
        """Return choices that draw a plan like this one; None where none do."""
        found: dict[str, int | float | str] = {"stages": len(plan.stages)}
        if not 1 <= len(plan.stages) <= STAGES:
            return None
        for number, stage in enumerate(plan.stages):
            if stage.site not in self.places or stage.options.keys() - {ORDER}:
                return None
            found[f"site{number}"] = stage.site
            found[f"method{number} at {stage.site}"] = stage.method
            found[f"shape{number}"] = min(max(stage.keep / plan.stages[-1].keep, 1.0), WIDEST)
        return found

    def _position(self, site: str) -> tuple[bool, int]:
        place = self.places[site]
        return place.stack is self.facts.consumer, place.site.depth

    def _fitted(
        self, stages: list[tuple[str, str]], shapes: list[float], budget: Fraction
    ) -> Plan | None:
        """Return the largest counts within the budget; None where there are none."""
        groups = [self.places[site].site.group for site, _ in stages]
        most = [row_count(self.places[site].stack) for site, _ in stages]

        def counts(last: int) -> list[int]:
            wanted = [
                round(last * shape / group) * group
                for shape, group in zip(shapes, groups, strict=True)
            ]
            return [min(n, max(group, w)) for n, group, w in zip(most, groups, wanted, strict=True)]

        def spend(rows: list[int]) -> Fraction:
            try:
                return spent(self.facts, self._plan(stages, rows))
            except (InputError, UnsupportedError, BudgetError):
                return Fraction(2)

        keeps = range(1, most[-1] + 1)
        at = bisect_right(keeps, budget, key=lambda last: spend(counts(last)))
        if not at:
            return None
        rows = counts(keeps[at - 1])
        for number, group in enumerate(groups):
            while rows[number] + group <= (rows[number - 1] if number else most[0]):
                raised = [*rows[:number], rows[number] + group, *rows[number + 1 :]]
                if spend(raised) > budget:
                    break
                rows = raised
        return self._without_idle(self._plan(stages, rows))

    def _without_idle(self, plan: Plan) -> Plan:
        there = {place.stack.role: row_count(place.stack) for place in self.places.values()}
        stages: list[Stage] = []
        for stage in plan.stages:
            place, consumer = self.places[stage.site], self.facts.consumer
            if stage.keep < there[place.stack.role]:
                arrive = rows_arriving(self.facts, place.stack, place.site, stage.keep)
                there[place.stack.role] = stage.keep
                if consumer.role in there:
                    there[consumer.role] = min(there[consumer.role], arrive)
                stages.append(stage)
        return Plan(tuple(stages) or plan.stages[-1:], plan.budget, plan.seed)

    def _plan(self, stages: list[tuple[str, str]], rows: list[int]) -> Plan:
        made = (Stage(*stage, keep) for stage, keep in zip(stages, rows, strict=True))
        return Plan(tuple(made), float(self.budget), self.seed)


def _places(facts: Facts, methods: Mapping[str, Method]) -> list[Place]:
    found: list[Place] = []
    for stack in facts.stacks:
        for site in stack.sites:
            if not site.legal or not _shortens(facts, stack, site):
                continue
            fitting = tuple(n for n, m in methods.items() if _fits(facts, stack, site, m))
            if fitting:
                found.append(Place(stack, site, fitting))
    return found


def _shortens(facts: Facts, stack: TokenStack, site: Site) -> bool:
    """Return whether rows dropped at a site are missing in the consumer."""
    consumer = facts.consumer
    if stack is consumer or stack.tokens.root is consumer.tokens.root:
        return True
    try:
        return facts.arrival(site, consumer) is not None
    except UnsupportedError:
        return False


def _fits(facts: Facts, stack: TokenStack, site: Site, method: Method) -> bool:
    if stack.role.rstrip("0123456789") not in method.roles:
        return False
    if "layers" in method.needs and not any(
        layer.depth < site.depth and not layer.windowed for layer in stack.stack.layers
    ):
        return False
    if ("relay" in method.needs and stack.relay is None) or (
        method.combine is not None and site.group != 1
    ):
        return False
    try:
        if "places" in method.needs:
            stack_places(facts, stack, {})
        if "tower" in method.needs:
            feeder_of(facts, stack, method.name)
    except UnsupportedError:
        return False
    return True
