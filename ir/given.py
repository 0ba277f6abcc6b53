"""Given: a program's inputs, and which values are made of pixels and which of anything else."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.dependence import Dependence
from tokopt.ir.layers import Stack


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
        pixels = [n for n in every if is_float(n)]
        read = {stack.layers[0].entry for stack in crosses}
        words = dependence.reached([n for n in every if n not in pixels], frozenset())
        seen = dependence.reached(pixels, frozenset())
        return Given(tuple(every), seen, dependence.reached(pixels, read), words)


def is_float(node: fx.Node) -> bool:
    """Return whether a value is a tensor of floating-point numbers."""
    value = node.meta.get("val")
    return bool(getattr(value, "is_floating_point", lambda: False)())
