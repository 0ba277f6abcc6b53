"""Tower tap: what a method at a site of the decoder reads of the tower that feeds it.

Scores made in the tower travel to the sequence the way its rows do (``ir/arrival.py``): by a table
of which unit each visual row came from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tokopt.ir.arrival import Arrival
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.layout import lead_axes
from tokopt.ir.places import image_of, tower_places
from tokopt.ir.plan import Plan
from tokopt.ir.sites import Site
from tokopt.passes.instead import instead
from tokopt.passes.methods.method import Method, TowerTap
from tokopt.passes.numbering import visual_numbers
from tokopt.passes.operands import Given, Operands
from tokopt.passes.patches import grey_patches
from tokopt.passes.reused import reuses
from tokopt.passes.stack_state import StackState
from tokopt.passes.taps import tap_recipe
from tokopt.passes.workspace import Workspace

Feeder = tuple[TokenStack, Site, Arrival]


def feeders_of(facts: Facts, plan: Plan, methods: Callable[[str], Method]) -> dict[str, Feeder]:
    """Return the tower by site, for the stages whose method reads it.

    Raises ``UnsupportedError`` where there is none, or where another stage shortens it; a method
    that only wishes the tower then goes without.
    """
    found: dict[str, Feeder] = {}
    for stage in plan.stages:
        method = methods(stage.method)
        needed = "tower" in method.needed(stage.options)
        if not needed and "tower" not in method.wishes:
            continue
        try:
            feeder = feeder_of(facts, facts.find_site(stage.site)[0], stage.method)
            refuse_shortened(facts, plan, f"{stage.method} at {stage.site}", feeder[0])
            found[stage.site] = feeder
        except UnsupportedError:
            if needed:
                raise
    return found


def refuse_shortened(facts: Facts, plan: Plan, who: str, tower: TokenStack) -> None:
    """Refuse where a tower that is read has few rows under a plan, or few that are asked."""
    short = [stage.site for stage in plan.stages if facts.find_site(stage.site)[0] is tower]
    if short:
        raise UnsupportedError(
            f"{who} reads the whole tower, and a stage at {short[0]} shortens it",
            hint="leave the stage in the tower out",
        )
    for entry in reuses(plan):
        if facts.find_site(entry.site)[0] is tower:
            raise UnsupportedError(
                f"{who} reads the whole tower, and {entry.method} computes few of its rows",
                hint=f"leave {entry.method} out, or take a method that reads the decoder alone",
            )


def feeder_of(facts: Facts, stack: TokenStack, method: str) -> Feeder:
    """Return the tower whose rows are merged into a stack; refuse where its rows cannot be read."""
    feeder = facts.feeder(stack) if stack.merge is not None else None
    if feeder is None or feeder[0].stack.layers[-1].windowed:
        raise UnsupportedError(
            f"{method} reads the last layer of the tower that feeds {stack.role}, and "
            + ("there is no such tower" if feeder is None else "it attends in windows"),
            hint=instead(stack.role),
        )
    return feeder


def read_tower(
    work: Workspace,
    operands: Operands,
    stack: TokenStack,
    site: Site,
    state: StackState,
    feeders: Mapping[str, Feeder],
) -> Callable[[Given, Tensor], TowerTap | None]:
    """Return a function of the values given and the candidates: the tap, None where none is read.

    Constants are inserted where the graph has none.
    """
    if site.name not in feeders:
        return lambda given, candidates: None
    tower, end, arrival = feeders[site.name]
    lead = lead_axes(work.axes[end.value], end.dim, end.tokens)
    recipe = tap_recipe(tower.stack.layers[-1], work.facts.dims, lead)
    assert recipe is not None
    layer = operands.slots(recipe.nodes)
    early = tap_recipe(tower.stack.layers[0], work.facts.dims, lead)
    first = operands.slots([] if early is None else early.nodes)
    name = site.name.replace(":", "_")
    units = end.groups()
    members = torch.argsort(units, stable=True).reshape(int(units.max()) + 1, -1)
    together = operands.slot(work.constant(f"units_{name}", members))
    came = operands.slot(work.constant(f"came_{name}", arrival.units))
    image = image_of(work.facts.dims, tower.tokens)
    places = tower_places(work.facts.dims, tower.tokens) if image is not None else None
    pixels = operands.maybe(image)
    where = operands.maybe(
        None if places is None else work.constant(f"patches_{name}", places.table)
    )
    numbers = visual_numbers(operands, stack, state)
    front, items = tower.protected, len(arrival.reach)

    def build(given: Given, candidates: Tensor) -> TowerTap:
        number, table, source = numbers(given, candidates), together(given), came(given)
        tap = recipe.build(layer(given))
        width = tap.query.shape[2]

        def arrive(values: Tensor, elsewhere: float) -> Tensor:
            rows = values.narrow(1, front, table.numel())
            means = rows[:, table].mean(-1).reshape(-1, items * len(table))
            arrived = means[:, source.clamp_min(0)].masked_fill(source < 0, elsewhere)
            there = arrived.gather(1, number.clamp(0, len(source) - 1))
            return there.masked_fill(~candidates, 0.0)

        rows = torch.arange(width, device=candidates.device).unsqueeze(0)
        inside = (rows >= front) & (rows < front + table.numel())
        seen, at, patches = pixels(given), where(given), None
        if seen is not None and at is not None and places is not None:
            patches = grey_patches(seen, places.seen(at), front, width)
        above = None if early is None else early.build(first(given))
        return TowerTap(tap, tower.relay, inside, arrive, patches, above)

    return build
