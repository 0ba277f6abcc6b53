"""Runs: the stages of a plan by the token axis they shorten, in the order data passes them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from tokopt.ir.arrival import Arrival
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan, Stage
from tokopt.ir.sites import Site
from tokopt.passes.methods.asked import check_options
from tokopt.passes.methods.method import Method
from tokopt.passes.stage import refuse_barrier

Members = list[tuple[int, Stage, Site]]
Run = list[tuple[TokenStack, Members]]


def plan_runs(facts: Facts, plan: Plan, methods: Callable[[str], Method]) -> list[Run]:
    """Group stacks by the token axis they share (a tower, and who reads it by cross-attention)."""
    runs: list[Run] = []
    for stack, members in _in_data_order(facts, plan, methods):
        home = next((run for run in runs if run[0][0].tokens.root is stack.tokens.root), None)
        if home is None:
            runs.append(home := [])
        home.append((stack, members))
    for run in runs:
        sites = [site for _, members in run for _, _, site in members]
        for a, b in itertools.pairwise(sites):
            if a.unit != b.unit:
                raise UnsupportedError(
                    f"rows leave in groups of {a.group} at {a.name} and of {b.group} at {b.name}",
                    expected="stages along one token axis at sites with the same groups",
                )
    return runs


def come_back(run: Run) -> bool:
    """Return whether rows that go in a run come back in it."""
    return any(stage.until is not None for _, members in run for _, stage, _ in members)


def refuse_beside(stages: list[tuple[TokenStack, int, Stage, Site]], *, shortened: bool) -> None:
    """Refuse a stage whose rows come back where other stages shorten the same stack."""
    names = " and ".join(site.name for _, _, _, site in stages)
    if shortened or len(stages) > 1:
        raise UnsupportedError(
            f"rows come back in a stack that other stages shorten: {names}",
            expected="no other stage in that stack, nor in one that feeds it",
        )


def _in_data_order(
    facts: Facts, plan: Plan, methods: Callable[[str], Method]
) -> list[tuple[TokenStack, Members]]:
    """Group stages by stack, towers first, by depth inside a stack; refuse what cannot be."""
    grouped: dict[str, Members] = {s.role: [] for s in facts.stacks}
    for position, stage in enumerate(plan.stages):
        stack, site = facts.find_site(stage.site)
        method = methods(stage.method)
        role, roles = stack.role.rstrip("0123456789"), method.roles
        check_options(method, stage.options)
        if role not in roles:
            raise InputError(
                f"{stage.method} cannot be placed at {stage.site}",
                expected="a stack of role " + " or ".join(sorted(roles)),
            )
        _refuse_words(facts, stack, stage)
        refuse_barrier(stack, site)
        _refuse_none(stack, stage, method)
        grouped[stack.role].append((position, stage, site))
    for members in grouped.values():
        members.sort(key=lambda member: member[2].depth)
        for (_, a, x), (_, b, y) in itertools.pairwise(members):
            if x.depth == y.depth:
                raise InputError(f"two stages at one site: {a.site} and {b.site}")
    order = sorted(facts.stacks, key=lambda s: s.merge is not None)
    return [(stack, grouped[stack.role]) for stack in order]


def _refuse_words(facts: Facts, stack: TokenStack, stage: Stage) -> None:
    """Refuse a stage that drops words of a model that has pictures as well."""
    if stack.role.startswith("text") and not facts.consumer.role.startswith("text"):
        raise UnsupportedError(
            f"{stage.method} at {stage.site} would drop words, and text is never dropped beside "
            "visual rows",
            expected="a model of text alone",
        )


def _refuse_none(stack: TokenStack, stage: Stage, method: Method) -> None:
    """Refuse a stage that leaves no visual row where something must be left, or is not made for it.

    In a decoder the text is left.
    """
    none = stage.keep == 0 and method.empties and stack.merge is not None
    if stage.keep < 1 and not none:
        raise InputError(
            f"keep = {stage.keep} at {stage.site}, by {stage.method}",
            expected="at least 1 token" + (" in a tower" if method.empties else ""),
            hint="todre can take all visual rows out of a decoder",
        )


def arriving_of(facts: Facts, run: Run) -> dict[str, Arrival]:
    """Return how the units that the stages of a run leave arrive in other stacks, by role."""
    sites = [site for _, members in run for _, _, site in members]
    fed: dict[str, Arrival] = {}
    for stack in facts.stacks if sites else ():
        if stack.tokens.root is not run[0][0].tokens.root:
            found = facts.arrival(sites[-1], stack)
            if found is not None:
                fed[stack.role] = found
    return fed


def refuse_mixed_units(fed: Mapping[str, Arrival], runs: list[Run]) -> None:
    """Refuse stages in a stack that other stages have shortened by units of another axis."""
    for run in runs:
        for stack, members in run:
            if members and stack.role in fed and not fed[stack.role].holes:
                raise UnsupportedError(
                    f"a stage at {members[0][2].name} cannot follow one in the tower: rows leave "
                    "there in other units",
                    expected="stages in the tower or in the decoder, not in both",
                )
