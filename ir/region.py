"""Region: what happens downstream of a value when rows of its token axis are taken away.

Walking the users of the value in order, every operand that carries the axis is judged by the rule
of the call that reads it.  Rows that pass, or are reduced as a set, stay short.  Where rows are
moved by position (an index, a scatter, a regrouping) the full length is restored first, dropped
rows as holes; holes may be moved and projected but not combined.  Anything else is a barrier.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx

from tokopt.ir.axis import Axis, fragments, locate
from tokopt.ir.call import Mix
from tokopt.ir.dims import Dims, describe, is_factory, operator_name
from tokopt.ir.layout import lead_axes
from tokopt.ir.lengths import is_longer, is_one, same_length, total


@dataclass(frozen=True)
class Barrier:
    """Why an axis cannot be shortened: the node that reads its rows by position."""

    node: fx.Node
    reason: str

    def __str__(self) -> str:
        return f"{self.reason}: {describe(self.node)}"


@dataclass
class Region:
    """The part of a graph that runs on fewer rows.

    ``short``: calls whose operands are short, in order.  ``restores``: ``(user, operand)`` edges
    where the full length comes back; ``holes``: values of full length with dropped rows in them.
    ``merges``: where rows with holes enter another sequence: scatters, and what is read across.
    """

    short: list[fx.Node] = field(default_factory=list)
    restores: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    outputs: list[fx.Node] = field(default_factory=list)
    holes: set[fx.Node] = field(default_factory=set)
    merges: list[fx.Node] = field(default_factory=list)


def plan_region(
    graph: fx.Graph, dims: Dims, value: fx.Node, tokens: Axis, *, last_row_kept: bool = False
) -> Region | Barrier:
    """Return the region downstream of ``value`` when ``tokens`` is shortened, or the barrier.

    ``last_row_kept`` says that the axis's last row is never dropped (the last prompt token).
    """
    tokens = tokens.root
    pieces = fragments(tokens)
    items = _items(dims, value, tokens)
    region = Region()
    short: set[fx.Node] = {value}
    tainted: dict[fx.Node, set[int]] = {}
    node = value
    while node.next is not graph._root:
        node = node.next
        if node.op == "placeholder":
            continue
        operands = node.all_input_nodes
        carried = [a for a in operands if a in short and _carries(dims, a, tokens)]
        if node.op == "output":
            region.outputs = carried
            continue
        if is_factory(node) or not (carried or any(a in tainted for a in operands)):
            if any(a in short for a in operands) and not is_factory(node):
                short.add(node)  # downstream, but no longer of the axis (a pooled vector)
            continue
        if node in dims.axes or node in dims.outs or operator_name(node) == "getitem":
            pass
        elif carried:
            return Barrier(node, "reads the size of the token axis")
        apart = _takes_items_apart(node, carried, dims, tokens, items)
        verdict = not apart and _judge(node, carried, dims, tokens, pieces, last_row_kept)
        if isinstance(verdict, Barrier):
            return verdict
        if verdict:  # the rows pass: the call runs short
            short.add(node)
            region.short.append(node)
            continue
        region.restores.extend((node, a) for a in carried)
        holes = _spread(node, carried, dims, tokens, pieces, tainted)
        if isinstance(holes, Barrier):
            return holes
        if _is_merge(node, carried, tainted):
            region.merges.append(node)
        elif holes:
            tainted[node] = holes
    region.holes = set(tainted)
    return region


def _carries(dims: Dims, node: fx.Node, tokens: Axis) -> bool:
    every = [dims.axes[node]] if node in dims.axes else dims.outs.get(node, [])
    return any(locate(axis, tokens) is not None for axes in every for axis in axes)


def _items(dims: Dims, value: fx.Node, tokens: Axis) -> tuple[Axis, ...]:
    """Return the batch axes of the value that is cut."""
    axes = dims.axes[value]
    dim = next((d for d, axis in enumerate(axes) if locate(axis, tokens) is not None), None)
    return () if dim is None else lead_axes(axes, dim, tokens)


def _takes_items_apart(
    node: fx.Node, carried: list[fx.Node], dims: Dims, tokens: Axis, items: tuple[Axis, ...]
) -> bool:
    """Return whether a call separates batch items (``unbind``): their rows differ from here on.

    Behind it no one index says which rows are there, so the full length must be back before it.
    """
    if operator_name(node) == "getitem":
        return False
    outs = dims.outs.get(node) or [dims.axes.get(node, [])]
    passing = [axes for axes in outs if any(locate(a, tokens) is not None for a in axes)]
    return any(
        any(locate(a, item) is not None for a in dims.axes.get(operand, []))
        and not all(any(locate(a, item) is not None for a in axes) for axes in passing)
        for operand in carried
        for item in items
    )


def _judge(
    node: fx.Node,
    carried: list[fx.Node],
    dims: Dims,
    tokens: Axis,
    pieces: set[int],
    last_row_kept: bool,
) -> bool | Barrier:
    """Return True where the call can run short, False where rows must be restored first."""
    if not carried:
        return False
    if operator_name(node) == "getitem":
        return True
    uses = dims.uses[node]
    outs = dims.outs.get(node) or [dims.axes[node]]
    passes = any(locate(axis, tokens) is not None for axes in outs for axis in axes)
    broken = any(id(axis.root) in pieces for axes in outs for axis in axes)
    for operand in carried:
        for dim, axis in enumerate(dims.axes.get(operand, [])):
            place = locate(axis, tokens)
            if place is None:
                continue
            mix = next((m for m in uses.mixes if (m.operand, m.dim) == (operand, dim)), None)
            if mix is not None:
                return Barrier(node, _reason(mix, axis))
            if any((m.operand, m.dim) == (operand, dim) for m in uses.moves):
                return False
            for pick in uses.picks:
                if (pick.operand, pick.dim) == (operand, dim) and not _outside(
                    pick.start, pick.length, axis, tokens, last_row_kept
                ):
                    return False
            picked = any((p.operand, p.dim) == (operand, dim) for p in uses.picks)
            if not passes and not picked and (operand, dim) not in uses.folds:
                return False if broken else Barrier(node, "no rule says what becomes of the rows")
    return not (broken and not passes)


def _reason(mix: Mix, axis: Axis) -> str:
    return f"{mix.reason} (a dim of {axis.root.length} rows)"


def _outside(start: object, length: object, axis: Axis, tokens: Axis, last_row_kept: bool) -> bool:
    """Return whether a range of rows does not touch the token axis, or holds all of it."""
    leaves, before = axis.root, 0
    if leaves is tokens.root:
        whole = same_length(start, 0) and same_length(length, axis.root.length)
        end = same_length(total([start, length]), axis.root.length)
        return whole or (last_row_kept and end and is_one(length))
    place = locate(axis, tokens)
    if place is None or len(place.path) != 1 or place.path[0][0] != "+":
        return False
    _, children, index = place.path[0]
    before = total([c.root.length for c in children[:index]])
    behind = total([before, tokens.root.length])
    stop = total([start, length])
    left = is_longer(stop, before) is False
    right = is_longer(behind, start) is False
    around = is_longer(start, before) is False and is_longer(behind, stop) is False
    return left or right or around


def _spread(
    node: fx.Node,
    carried: list[fx.Node],
    dims: Dims,
    tokens: Axis,
    pieces: set[int],
    tainted: dict[fx.Node, set[int]],
) -> set[int] | Barrier:
    """Return the axes of a call's output that have holes, or the barrier that combines them."""
    if operator_name(node) == "getitem":
        return tainted.get(node.all_input_nodes[0], set())
    uses = dims.uses.get(node)
    outs = dims.outs.get(node) or [dims.axes.get(node, [])]
    if uses is None:
        return Barrier(node, "reads rows that a restored axis leaves empty")
    holed: dict[fx.Node, set[int]] = {}
    for operand in node.all_input_nodes:
        axes = dims.axes.get(operand, [])
        if operand in carried:
            holed[operand] = {d for d, a in enumerate(axes) if _touches(a, tokens, pieces)}
        elif operand in tainted:
            holed[operand] = {d for d, a in enumerate(axes) if id(a.root) in tainted[operand]}
    for operand, dims_with_holes in holed.items():
        for dim in dims_with_holes:
            mix = next((m for m in uses.mixes if (m.operand, m.dim) == (operand, dim)), None)
            axis = dims.axes[operand][dim]
            if mix is not None:
                return Barrier(node, _reason(mix, axis))
            if (operand, dim) in uses.folds:
                return Barrier(
                    node, f"reduces {axis.root.length} rows that were regrouped by position"
                )
    sources = {id(dims.axes[o][d].root) for o, ds in holed.items() for d in ds}
    clean = {
        id(a.root)
        for o in node.all_input_nodes
        for d, a in enumerate(dims.axes.get(o, []))
        if d not in holed.get(o, set()) and id(a.root) not in sources
    }
    moved = {
        id(outs[0][m.out].root)  # an index may run along it and is whole: its rows are not
        for m in uses.moves
        if m.out is not None and m.dim in holed.get(m.operand, ())
    }
    return moved | {
        id(axis.root)
        for axes in outs
        for axis in axes
        if not is_one(axis.root.length) and id(axis.root) not in clean
    }


def _touches(axis: Axis, tokens: Axis, pieces: set[int]) -> bool:
    return locate(axis, tokens) is not None or id(axis.root) in pieces


def _is_merge(node: fx.Node, carried: list[fx.Node], tainted: dict[fx.Node, set[int]]) -> bool:
    if operator_name(node) == THREAD:
        return True
    if operator_name(node) not in MERGES:
        return False
    base = node.all_input_nodes[0]
    written = node.all_input_nodes[-1]
    return base is not written and (written in carried or written in tainted)


THREAD = "aten::alias"
"""Where layers begin to read another stream across (``ir/cross.py``): holes leave there."""

MERGES = frozenset({"aten::masked_scatter", "aten::index_put"})
"""Operators that write rows of one sequence into run-time positions of another."""
