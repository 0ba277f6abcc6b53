"""Roles: what a stack of layers is for, from where its rows come."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.axis import locate
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims
from tokopt.ir.layers import Stack
from tokopt.ir.merge import mixes_text


@dataclass(frozen=True)
class Given:
    """User inputs, and what is computed from them.

    ``seen`` depends on a floating-point input (pixels), ``visual`` on other ways than by reading
    it across; ``words`` depends on any other input.
    """

    inputs: tuple[fx.Node, ...]
    seen: AbstractSet[fx.Node]
    visual: AbstractSet[fx.Node]
    words: AbstractSet[fx.Node]

    @staticmethod
    def of(exported: ExportedProgram, dependence: Dependence, crosses: list[Stack]) -> Given:
        """Return what a program with these stacks of cross-attention is given."""
        names = {
            spec.arg.name
            for spec in exported.graph_signature.input_specs
            if spec.kind is InputKind.USER_INPUT and hasattr(spec.arg, "name")
        }
        every = [n for n in exported.graph.find_nodes(op="placeholder") if n.name in names]
        pixels = [n for n in every if _is_float(n)]
        read = {stack.layers[0].entry for stack in crosses}
        words = dependence.reached([n for n in every if n not in pixels], frozenset())
        seen = dependence.reached(pixels, frozenset())
        return Given(tuple(every), seen, dependence.reached(pixels, read), words)


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
    from_each = [dependence.reached([i], frozenset()) for i in given.inputs]
    asked = any(query in found and key not in found for found in from_each)
    queries = first.attention[0].queries
    feeds = any(
        dependence.reaches(last.join, later.layers[0].entry)
        and locate(later.stream, queries) is None
        for later in stacks
    )
    return "decoder" if asked and not feeds else "resampler"


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return bool(getattr(value, "is_floating_point", lambda: False)())
