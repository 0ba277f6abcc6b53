"""Generation: which stages in a decoder the programs behind it can follow.

Behind a stage inside the decoder its layers' caches have different lengths.  That is what decode
runs on where each cache has a free length of its own; where all have one, only stages in front of
the first layer are left.
"""

from __future__ import annotations

from dataclasses import replace

from torch import SymInt

from tokopt.cli.separate import Separate
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.holes import Barrier
from tokopt.ir.lengths import length_of, same_length
from tokopt.ir.plan import Plan
from tokopt.ir.tensors import tensor_inputs


def with_followers(facts: Facts, separate: Separate) -> Facts:
    """Return facts with sites inside a decoder barred where what follows takes one length."""
    name = _one_length(facts, separate)
    if name is None:
        return facts
    why = (
        "a stage inside the decoder would leave its layers caches of different lengths, and "
        f"program {name!r} takes all of one length"
    )

    def barred(stack: TokenStack) -> TokenStack:
        if not stack.role.startswith("decoder"):
            return stack
        inner = [
            s if s.depth == 0 else replace(s, barrier=Barrier(s.value, why)) for s in stack.sites
        ]
        return replace(stack, sites=tuple(inner))

    return replace(facts, stacks=tuple(barred(stack) for stack in facts.stacks))


def refuse_stages(facts: Facts, plan: Plan) -> None:
    """Raise ``UnsupportedError`` for a plan with a stage inside a decoder where that is barred.

    ``facts`` are those of ``with_followers``; the message names the legal sites.
    """
    for stage in plan.stages:
        stack, site = facts.find_site(stage.site)
        if site.depth > 0 and stack.role.startswith("decoder") and site.barrier is not None:
            sites = [s.name for one in facts.stacks for s in one.sites if s.legal]
            raise UnsupportedError(
                f"rows cannot be dropped at {stage.site}: {site.barrier}",
                expected="one of the sites " + (", ".join(sites) or "(none is legal)"),
                hint="export decode without a mask and each cache with a free length of its own",
            )


def _one_length(facts: Facts, separate: Separate) -> str | None:
    """Return a program behind the main one that takes all rows of the prompt by one length."""
    rows = facts.consumer.rows.root.length
    values = [node.meta["val"] for node in facts.exported.graph.output_node().args[0]]
    given = dict(zip(separate.followers().places, values, strict=True))
    for name in separate.following:
        graph = separate.program.graphs[name]
        taken = {tensor.name: tensor.value for tensor in tensor_inputs(graph)}
        lengths = [
            str(size)
            for link in separate.links
            if link.target == name and (link.source, link.output) in given
            for size, whole in zip(
                taken[link.input].shape, given[link.source, link.output].shape, strict=True
            )
            if isinstance(size, SymInt) and same_length(length_of(whole), rows)
        ]
        if len(lengths) > 2 and len(set(lengths)) == 1:
            return name
    return None
