"""Facts of a real graph with one thing changed: groups of rows, or a barrier."""

import dataclasses

from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.region import Barrier


def grouped(facts: Facts, group: int = 4) -> Facts:
    """A tower whose rows leave in groups, each group of 4 one row of the decoder."""
    tower, decoder = facts.stacks
    assert decoder.merge is not None and isinstance(decoder.count, int)
    count = decoder.count // 4
    merge = dataclasses.replace(decoder.merge, count=count)
    sites = tuple(dataclasses.replace(site, group=group) for site in tower.sites)
    changed = (
        dataclasses.replace(tower, sites=sites),
        dataclasses.replace(decoder, merge=merge, count=count),
    )
    return dataclasses.replace(facts, stacks=changed)


def barred(facts: Facts, name: str) -> Facts:
    """The same model with a barrier at one site."""

    def change(stack: TokenStack) -> TokenStack:
        sites = tuple(
            dataclasses.replace(site, barrier=Barrier(site.value, "mixes rows of a window"))
            if site.name == name
            else site
            for site in stack.sites
        )
        return dataclasses.replace(stack, sites=sites)

    return dataclasses.replace(facts, stacks=tuple(change(stack) for stack in facts.stacks))
