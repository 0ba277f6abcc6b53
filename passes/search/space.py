"""Space: the plans a search draws from: sites, methods and how many rows each stage leaves.

A plan is of one *form*.  ``stages``: one to three of them; of each a trial chooses the site and
the method, of all but the last also a *shape* ``f >= 1``: the stage leaves ``f`` times the rows of
the last.  ``linear``, ``cosine``, ``step``: a schedule, two to six stages of one method, evenly
spaced from a chosen site to the stack's end, whose counts fall from ``f`` times those of the last
in that shape.  Of each method a trial chooses the options that it may (``Method.tunes``).

How many rows the last stage leaves is not chosen but found: as many as the budget allows.  Then the
stages are raised one by one, the first first, so a plan spends at most the budget and is within one
row of it.  Stages that would leave every row there is are left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from math import cos, pi
from typing import Any, Protocol

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site
from tokopt.passes.budget import row_count, rows_arriving, spent
from tokopt.passes.methods.method import GRID, Method
from tokopt.passes.methods.order import ORDER
from tokopt.passes.placed import stack_places
from tokopt.passes.tower_tap import feeder_of

STAGES, STEPS = 3, 6
"""The most stages of a plan that chooses each, and of one that has a schedule."""
WIDEST = 16.0
"""The largest shape: what a stage leaves, over what the last leaves."""


FREE_FORM = "stages"
FORMS = (FREE_FORM, "linear", "cosine", "step")

Options = dict[str, int | float | str]
Choice = tuple[str, str, Options]
"""A site, a method, and its options where they are not the default."""


class Trial(Protocol):
    """What chooses: an Optuna trial, or anything with these three."""

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return a number in ``low .. high``."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return a number between two, even in its logarithm."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
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
        self,
        facts: Facts,
        methods: Mapping[str, Method],
        budget: Fraction,
        seed: int = 0,
        grid: str | None = None,
    ) -> None:
        self.facts, self.budget, self.seed, self.grid = facts, budget, seed, grid
        self.methods = methods
        self.places = {place.site.name: place for place in _places(facts, methods, grid)}
        if not self.places:
            raise UnsupportedError(
                "no method can be placed anywhere", hint="tokopt inspect shows the barriers"
            )

    def draw(self, trial: Trial, budget: Fraction | None = None) -> Plan | None:
        """Return the plan a trial chooses; None where its choices do not fit together.

        ``budget``: another share of the tokens than the space's own.
        """
        form = trial.suggest_categorical("form", FORMS)
        if form != FREE_FORM:
            return self._scheduled(trial, form, budget or self.budget)
        chosen: dict[str, tuple[Choice, float]] = {}
        count = trial.suggest_int("stages", 1, STAGES)
        for number in range(count):
            site = trial.suggest_categorical(f"site{number}", list(self.places))
            choice = self._choice(trial, number, site)
            shape = trial.suggest_float(f"shape{number}", 1.0, WIDEST, log=True)
            if site in chosen:
                return None
            chosen[site] = (choice, shape)
        order = sorted(chosen, key=self._position)
        places = [self.places[site] for site in order]
        if any(a.stack is b.stack and a.site.unit != b.site.unit for a, b in pairwise(places)):
            return None  # rows leave in groups of other sizes
        shapes = [chosen[site][1] for site in order]
        widest = [max(shapes[at:]) for at in range(len(order))]  # counts never grow with depth
        stages = [chosen[site][0] for site in order]
        return self._fitted(stages, [*widest[:-1], 1.0], budget or self.budget)

    def _choice(self, trial: Trial, number: int, site: str) -> Choice:
        """Return the method that a trial chooses at a site, with its options."""
        place = self.places[site]
        name = trial.suggest_categorical(f"method{number} at {site}", list(place.methods))
        method = self.methods[name]
        options = _stated(self.facts, place.stack, method, self.grid)
        for option, values in method.tunes.items():
            known = [method.options[option], *values]
            value = trial.suggest_categorical(f"{option}{number} of {name}", known)
            if value != known[0]:
                options[option] = value
        return site, name, options

    def _scheduled(self, trial: Trial, form: str, budget: Fraction) -> Plan | None:
        """Return a plan of one method whose counts fall in a shape."""
        site = trial.suggest_categorical("site0", list(self.places))
        _, method, options = self._choice(trial, 0, site)
        first = self.places[site]
        ahead = sorted(
            (
                place
                for place in self.places.values()
                if place.stack is first.stack
                and place.site.depth >= first.site.depth
                and place.site.unit == first.site.unit
                and method in place.methods
            ),
            key=lambda place: place.site.depth,
        )
        count = min(trial.suggest_int("steps", 2, STEPS), len(ahead))
        widest = trial.suggest_float("shape0", 1.0, WIDEST, log=True)
        if count < 2:
            return None
        at = [round(step * (len(ahead) - 1) / (count - 1)) for step in range(count)]
        stages = [(ahead[i].site.name, method, options) for i in at]
        return self._fitted(stages, falling(form, widest, count), budget)

    def choices(self, plan: Plan) -> dict[str, int | float | str] | None:
        """Return choices that draw a plan like this one; None where none do."""
        found: dict[str, int | float | str] = {"form": FREE_FORM, "stages": len(plan.stages)}
        if not 1 <= len(plan.stages) <= STAGES:
            return None
        for number, stage in enumerate(plan.stages):
            if stage.site not in self.places:
                return None
            method = self.methods.get(stage.method)
            for option, value in stage.options.items():
                if option in (ORDER, GRID):
                    continue
                if method is None or value not in method.tunes.get(option, ()):
                    return None
                found[f"{option}{number} of {stage.method}"] = value
            for option in () if method is None else method.tunes:
                name = f"{option}{number} of {stage.method}"
                found.setdefault(name, self.methods[stage.method].options[option])
            found[f"site{number}"] = stage.site
            found[f"method{number} at {stage.site}"] = stage.method
            found[f"shape{number}"] = min(max(stage.keep / plan.stages[-1].keep, 1.0), WIDEST)
        return found

    def _position(self, site: str) -> tuple[bool, int]:
        place = self.places[site]
        return place.stack is self.facts.consumer, place.site.depth

    def _fitted(self, stages: list[Choice], shapes: list[float], budget: Fraction) -> Plan | None:
        """Return the largest counts within the budget; None where there are none."""
        groups = [self.places[site].site.group for site, *_ in stages]
        most = [row_count(self.places[site].stack) for site, *_ in stages]

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

    def _plan(self, stages: list[Choice], rows: list[int]) -> Plan:
        chosen = zip(stages, rows, strict=True)
        made = (Stage(site, name, keep, options) for (site, name, options), keep in chosen)
        return Plan(tuple(made), float(self.budget), self.seed)


def falling(form: str, widest: float, count: int) -> list[float]:
    """Return what each stage leaves over what the last leaves, from ``widest`` to 1."""
    parts = [step / (count - 1) for step in range(count)]
    left = {
        "linear": [1 - part for part in parts],
        "cosine": [(1 + cos(pi * part)) / 2 for part in parts],
        "step": [float(part < 0.5) for part in parts],
    }
    return [1 + (widest - 1) * part for part in left[form]]


def _stated(facts: Facts, stack: TokenStack, method: Method, grid: str | None) -> Options:
    """Return the grid as an option where a method needs one and only a person tells it."""
    if grid is None or "places" not in method.needs:
        return {}
    try:
        facts.places(stack)
    except UnsupportedError:
        return {GRID: grid}
    return {}


def _places(facts: Facts, methods: Mapping[str, Method], grid: str | None) -> list[Place]:
    found: list[Place] = []
    for stack in facts.stacks:
        for site in stack.sites:
            if not site.legal or not _shortens(facts, stack, site):
                continue
            fitting = tuple(n for n, m in methods.items() if _fits(facts, stack, site, m, grid))
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


def _fits(facts: Facts, stack: TokenStack, site: Site, method: Method, grid: str | None) -> bool:
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
            stack_places(facts, stack, _stated(facts, stack, method, grid))
        if "tower" in method.needs:
            feeder_of(facts, stack, method.name)
    except (UnsupportedError, InputError):  # a stated grid may fit another stack
        return False
    return True
