"""Places of a plan: where in the image the rows of each stage come from, found before rewriting."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.places import Places, stated_places
from tokopt.ir.plan import Plan
from tokopt.passes.methods.method import GRID, Method


def places_of(facts: Facts, plan: Plan, methods: Callable[[str], Method]) -> dict[str, Places]:
    """Return the places by site, for the stages whose method asks for them, or wishes them.

    Raises ``UnsupportedError`` where neither graph nor plan tells, ``InputError`` for a bad grid.
    """
    found: dict[str, Places] = {}
    for stage in plan.stages:
        method = methods(stage.method)
        needed = "places" in method.needed(stage.options)
        if needed or "places" in method.wishes:
            stack, _ = facts.find_site(stage.site)
            try:
                found[stage.site] = stack_places(facts, stack, stage.options)
            except UnsupportedError:
                if needed:
                    raise
    return found


def stack_places(
    facts: Facts, stack: TokenStack, options: Mapping[str, int | float | str]
) -> Places:
    """Return where a stack's rows come from, as the graph or a stage's options tell."""
    grid = options.get(GRID)
    if grid is None:
        return facts.places(stack)
    if not isinstance(stack.count, int):
        raise UnsupportedError("the number of visual tokens is symbolic")
    return stated_places(str(grid), stack.count)
