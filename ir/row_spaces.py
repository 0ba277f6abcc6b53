"""Row spaces: which pieces of dims hold the same rows in another order, or with others around them.

A roll, a permutation by an index, a pad: the dim behind it is another axis, since its rows stand
elsewhere, but they are the same rows.  Attention in shifted windows attends to a stream's rows
although its keys share no axis with the stream.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims
from tokopt.ir.lengths import is_one


class RowSpaces:
    """Union-find over the pieces of dims, joined by every move from one dim to one other."""

    def __init__(self, dims: Dims) -> None:
        self._above: dict[Axis, Axis] = {}
        every = [axes for axes in dims.axes.values()]
        every += [axes for outs in dims.outs.values() for axes in outs]
        for axis in (axis for axes in every for axis in axes):
            self._join_ways(axis.root)
        for node, uses in dims.uses.items():
            outs = dims.outs.get(node) or [dims.axes.get(node, [])]
            for move in uses.moves:
                if move.out is not None and move.operand not in dims.learned:
                    own = dims.axes[move.operand][move.dim]
                    self._join([*own.atoms(), *outs[0][move.out].atoms()])

    def hold(self, axis: Axis, rows: Axis) -> bool:
        """Return whether all pieces of ``rows`` hold rows of pieces of ``axis``."""
        inside = self._of(axis)
        wanted = self._of(rows)
        return bool(wanted) and wanted <= inside

    def _of(self, axis: Axis) -> set[Axis]:
        return {self._top(atom) for atom in axis.atoms() if not is_one(atom.length)}

    def _join_ways(self, axis: Axis) -> None:
        """Join what is known of a dim as a concatenation and as a product."""
        if axis.parts and axis.factors:
            self._join(axis.atoms())
        for piece in (*axis.parts, *axis.factors):
            self._join_ways(piece.root)

    def _join(self, atoms: Iterable[Axis]) -> None:
        tops = [self._top(atom) for atom in atoms if not is_one(atom.length)]
        for top in tops[1:]:
            if self._top(top) is not self._top(tops[0]):
                self._above[self._top(top)] = self._top(tops[0])

    def _top(self, atom: Axis) -> Axis:
        while atom in self._above:
            atom = self._above[atom]
        return atom
