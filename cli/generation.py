"""Generation: what has to wait for it: in several programs, stages in the decoder."""

from __future__ import annotations

from dataclasses import replace

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.holes import Barrier
from tokopt.ir.plan import Plan

GENERATION = (
    "a stage in the decoder would leave its layers caches of different lengths; in an archive of "
    "several programs that waits until generation is built"
)


def before_generation(facts: Facts) -> Facts:
    """Return the facts with every site of a decoder barred."""

    def barred(stack: TokenStack) -> TokenStack:
        if not stack.role.startswith("decoder"):
            return stack
        sites = [replace(s, barrier=Barrier(s.value, GENERATION)) for s in stack.sites]
        return replace(stack, sites=tuple(sites))

    return replace(facts, stacks=tuple(barred(stack) for stack in facts.stacks))


def refuse_decoder_stages(facts: Facts, plan: Plan) -> None:
    """Raise ``UnsupportedError`` for a plan with a stage in a decoder, naming the legal sites."""
    for stage in plan.stages:
        if facts.find_site(stage.site)[0].role.startswith("decoder"):
            sites = [
                s.name for stack in before_generation(facts).stacks for s in stack.sites if s.legal
            ]
            raise UnsupportedError(
                f"rows cannot be dropped at {stage.site}: {GENERATION}",
                expected="stages in front of the decoder: " + (", ".join(sites) or "none is legal"),
                hint="export the whole model as one program for stages in the decoder",
            )
