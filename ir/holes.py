"""Holes: which pieces of a full-length value's dims have dropped rows in them, and from where.

Behind a restore, dropped rows are holes.  They are followed per *piece* of a dim: where whole
groups of a token axis were dropped, only the factors that count groups have holes, and those that
run inside a group are whole.  Each hole remembers the pieces of the token axis it stems from and
the calls that moved it, so that a barrier can say what would have to stay whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims, describe, operator_name
from tokopt.ir.lengths import is_one


@dataclass(frozen=True)
class Barrier:
    """Why an axis cannot be shortened: the node that reads its rows by position.

    ``pieces`` are the factors of the token axis that are read: dropped whole, they would not be.
    """

    node: fx.Node
    reason: str
    pieces: frozenset[Axis] = frozenset()

    def __str__(self) -> str:
        return f"{self.reason}: {describe(self.node)}"


@dataclass(frozen=True)
class Hole:
    """Rows that are missing in one piece of a dim: the factors they stem from, what moved them."""

    sources: frozenset[Axis]
    moved: frozenset[fx.Node] = frozenset()


Holes = Mapping[Axis, Hole]


def holes_of(unit: Iterable[Axis]) -> dict[Axis, Hole]:
    """Return the holes that dropping along the factors of ``unit`` leaves."""
    return {atom: Hole(frozenset({factor})) for factor in unit for atom in factor.root.atoms()}


def united(holes: Iterable[Hole]) -> Hole:
    """Return what holes have in common when it is not known which is where."""
    given = list(holes)
    return Hole(
        frozenset().union(*(h.sources for h in given)), frozenset().union(*(h.moved for h in given))
    )


def touched(axis: Axis, holes: Holes) -> dict[Axis, Hole]:
    """Return the pieces of a dim that have holes.

    A dim that is known as a concatenation and as a product has holes by place in the one way where
    it has them in the other.
    """
    root = axis.root
    if not root.parts and not root.factors:
        return {root: holes[root]} if root in holes else {}
    ways = [[piece.root for piece in pieces] for pieces in (root.parts, root.factors) if pieces]
    found = [{k: v for piece in way for k, v in touched(piece, holes).items()} for way in ways]
    if len(ways) == 2:
        for way, here, there in zip(ways, found, [*reversed(found)], strict=True):
            if there and not here:
                hole = united(there.values())
                return {**there, **{atom: hole for piece in way for atom in piece.atoms()}}
    return {k: v for way in found for k, v in way.items()}


def spread(node: fx.Node, dims: Dims, given: Mapping[fx.Node, Holes]) -> dict[Axis, Hole] | Barrier:
    """Return the holes of a call's output from those of its operands, or what combines them."""
    if operator_name(node) == "getitem":
        return dict(given.get(node.all_input_nodes[0], {}))
    uses = dims.uses.get(node)
    if uses is None:
        return Barrier(node, "reads rows that a restored axis leaves empty")
    holed: dict[tuple[fx.Node, int], dict[Axis, Hole]] = {}
    clean: set[Axis] = set()
    for operand in (a for a in node.all_input_nodes if a not in uses.unread):
        for dim, axis in enumerate(dims.axes.get(operand, [])):
            here = touched(axis, given.get(operand, {}))
            clean.update(atom for atom in axis.atoms() if atom not in here)
            if here:
                holed[operand, dim] = here
    barrier = _combined(node, dims, holed)
    if barrier is not None or not holed:
        return barrier if barrier is not None else {}
    outs = dims.outs.get(node) or [dims.axes.get(node, [])]
    clean |= {atom for out in uses.repeats for atom in outs[0][out].atoms()} - {
        atom for here in holed.values() for atom in here
    }
    return _passed(node, dims, outs, holed, clean)


def _combined(
    node: fx.Node, dims: Dims, holed: Mapping[tuple[fx.Node, int], Holes]
) -> Barrier | None:
    """Return the barrier where a call combines rows that are there with holes."""
    for (operand, dim), here in holed.items():
        axis = dims.axes[operand][dim]
        for mix in dims.uses[node].mixes:
            if (mix.operand, mix.dim) == (operand, dim):
                read = here if mix.factor is None else touched(mix.factor, here)
                if read:
                    return Barrier(
                        node, mix_reason(mix.reason, axis), united(read.values()).sources
                    )
        if (operand, dim) in dims.uses[node].folds:
            reason = f"reduces {axis.root.length} rows that were regrouped by position"
            return Barrier(node, reason, united(here.values()).sources)
    return None


def mix_reason(reason: str, axis: Axis) -> str:
    """Return a barrier's reason with the dim's length."""
    return f"{reason} (a dim of {axis.root.length} rows)"


def _passed(
    node: fx.Node,
    dims: Dims,
    outs: Sequence[Sequence[Axis]],
    holed: Mapping[tuple[fx.Node, int], Holes],
    clean: set[Axis],
) -> dict[Axis, Hole] | Barrier:
    known: dict[Axis, Hole] = {}
    for here in holed.values():
        for atom, hole in here.items():
            if known.setdefault(atom, hole).moved != hole.moved:
                pieces = united([known[atom], hole]).sources
                return Barrier(node, "combines rows that were moved apart", pieces)
    fresh = united(known.values())
    result: dict[Axis, Hole] = {}
    targets: dict[Axis, Hole | None] = {}
    for move in dims.uses[node].moves:
        source = holed.get((move.operand, move.dim))
        if move.out is not None:
            gone = united(source.values()) if source else None
            for atom in outs[0][move.out].atoms():
                targets[atom] = targets.get(atom) or gone
    for atom in (a for axes in outs for axis in axes for a in axis.atoms()):
        if is_one(atom.length):
            continue
        moved = targets.get(atom)
        if moved is not None:  # an index may run along it and is whole: its rows are not
            result[atom] = Hole(moved.sources, moved.moved | {node})
        elif atom in known:
            result[atom] = known[atom]
        elif atom not in clean and atom not in targets:
            result[atom] = Hole(fresh.sources, fresh.moved | {node})
    return result
