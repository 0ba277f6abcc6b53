"""Row dims: which dims of a value count rows of a token stream, and which count something else."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims
from tokopt.ir.facts import Facts


class RowDims:
    """Answers from the axes: a dim counts rows if its axis shares a piece with a stream's axis."""

    def __init__(self, facts: Facts) -> None:
        self._dims: Dims = facts.dims
        self._pieces = {
            id(piece) for stack in facts.stacks for piece in _pieces(stack.stack.stream.root)
        }

    def __call__(self, node: fx.Node, dim: int) -> bool:
        """Return whether ``dim`` of a value counts rows."""
        axes = self._dims.axes.get(node, [])
        return bool(axes) and any(
            id(piece) in self._pieces for piece in _pieces(axes[dim % len(axes)].root)
        )


def _pieces(axis: Axis) -> Iterator[Axis]:
    yield axis
    for child in (*axis.parts, *axis.factors):
        yield from _pieces(child.root)
