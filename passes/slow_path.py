"""Slow path: rows that are not chosen skip some layers, one of them stands for them there.

The cut is an ordinary one, but its region ends at a later site of the same stack: there the rows
that skipped the layers come back with what their representative gained, and all that follows is the
original again.  Sound where nothing but the stream leaves the region, which is checked.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tokopt.ir.dims import describe
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.holes import Barrier
from tokopt.ir.plan import Stage
from tokopt.ir.region import Region, plan_region
from tokopt.ir.sites import Site
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.representative import entering, last_chosen, returned
from tokopt.passes.placing import refuse_groups
from tokopt.passes.stack_state import StackState
from tokopt.passes.stage import Inserted, insert_stage
from tokopt.passes.stream_view import stream_view
from tokopt.passes.workspace import Workspace


def path_end(facts: Facts, stage: Stage) -> Site:
    """Return where a stage's rows come back; refuse what is no later site of its stack."""
    assert stage.until is not None
    stack, site = facts.find_site(stage.site)
    _, end = facts.find_site(stage.until)
    if stack.site(stage.until) is None or end.depth <= site.depth:
        raise InputError(f"until = {stage.until!r}", expected=f"a site behind {stage.site}")
    if stack.merge is not None or stack.stack.cross:
        raise UnsupportedError(
            f"rows of {stack.role} cannot come back: what its layers remember of them is read on",
            expected="a stage in a tower",
        )
    return end


def inner_region(facts: Facts, graph: fx.Graph, site: Site, end: Site) -> Region:
    """Return the region between two sites; refuse where more than the stream leaves it."""
    region = plan_region(graph, facts.dims, site.value, site.tokens, unit=site.unit)
    if isinstance(region, Barrier):
        raise UnsupportedError(f"rows cannot be dropped here: {region}")
    inner = [
        n for n in region.short if n is end.value or not facts.dependence.reaches(end.value, n)
    ]
    inside = set(inner)
    for node in inner:
        for user in node.users:
            if user not in inside and node is not end.value:
                raise UnsupportedError(
                    f"a value between {site.name} and {end.name} is read behind it",
                    where=describe(node),
                    hint="let the rows come back elsewhere",
                )
    return Region(short=inner)


def insert_slow_path(
    work: Workspace,
    stack: TokenStack,
    site: Site,
    stage: Stage,
    method: Method,
    state: StackState,
    seed: int,
    position: int,
) -> Inserted:
    """Insert a stage whose rows come back at ``stage.until``; return its trace."""
    if method.combine is not None:
        raise UnsupportedError(f"{method.name} folds rows itself: none is left to stand for them")
    end = path_end(work.facts, stage)
    region = inner_region(work.facts, work.graph, site, end)
    refuse_groups("a stage whose rows come back", site.name, site.group)
    whole_view, front, count = stream_view(work, stack, site, state), stack.protected, state.visual
    trace, cut = insert_stage(work, stack, site, stage, method, state, seed, position)
    short_view = stream_view(work, stack, site, state)

    def among(scores: Tensor) -> Tensor:
        rows = torch.arange(scores.shape[1], device=scores.device)
        return (scores > float("-inf")) & (rows >= front) & (rows < front + count)

    def enter(before: Tensor, stay: Tensor, scores: Tensor) -> Tensor:
        candidates = among(scores)
        place = last_chosen(scores, candidates, stay)
        return whole_view.put(entering(whole_view.see(before), candidates, stay, place), before)

    def back(before: Tensor, went: Tensor, came: Tensor, stay: Tensor, scores: Tensor) -> Tensor:
        place = last_chosen(scores, among(scores), stay)
        seen = (whole_view.see(before), short_view.see(went), short_view.see(came))
        return whole_view.put(returned(*seen, stay, place).to(before.dtype), before)

    with work.after(site.value):
        entered = work.splice(enter, [site.value, trace.kept, trace.scores])
    cut.replace_value(entered)
    cut.shorten(region)

    with work.graph.inserting_before(end.value.next):
        users = list(end.value.users)
        operands = [site.value, entered, end.value, trace.kept, trace.scores]
        whole = work.splice(back, operands)
    work.axes[whole] = work.axes[end.value]
    for user in users:
        user.replace_input_with(end.value, whole)
    return trace
