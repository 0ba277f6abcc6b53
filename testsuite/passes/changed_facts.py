"""Facts of a real graph with one thing changed: a barrier."""

import dataclasses

from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.region import Barrier


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
