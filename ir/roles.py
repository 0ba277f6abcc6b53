"""Roles: what a stack of layers is for, from where its rows come."""

from __future__ import annotations

from tokopt.ir.axis import locate
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims
from tokopt.ir.given import Given
from tokopt.ir.layers import Stack
from tokopt.ir.merge import mixes_text


def kind_of(
    stack: Stack, stacks: list[Stack], dims: Dims, dependence: Dependence, given: Given
) -> str:
    """Return the role of a stack in whose sequence no visual rows of known number stand.

    A sequence in which image and text are mixed in an unknown way is *mixed*: none of it may go.
    """
    first, last = stack.layers[0], stack.layers[-1]
    if not stack.cross:
        if first.entry in given.visual:
            return "mixed" if mixes_text(stack, dims, dependence, given) else "vision"
        return "text" if first.entry in given.words else "latent"
    query, key = first.attention[0].query, first.attention[0].key
    if key in given.words and key not in given.seen:
        return "text"  # words alone are read
    from_each = [dependence.reached([i], frozenset()) for i in given.inputs]
    asked = any(query in found and key not in found for found in from_each)
    queries = first.attention[0].queries
    feeds = any(
        dependence.reaches(last.join, later.layers[0].entry)
        and locate(later.stream, queries) is None
        for later in stacks
    )
    return "decoder" if asked and not feeds else "resampler"
