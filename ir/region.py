"""Region: what happens downstream of a value when rows of its token axis are taken away.

Walking the users of the value in order, every operand that carries the axis is judged by the rule
of the call that reads it.  Rows that pass, or are reduced as a set, stay short.  Where rows are
moved by position (an index, a scatter, a regrouping) the full length is restored first, dropped
rows as holes; holes may be moved and projected but not combined.  Anything else is a barrier.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims, is_factory, operator_name
from tokopt.ir.holes import Barrier, Hole, Holes, holes_of, mix_reason, spread, touched, united
from tokopt.ir.layout import lead_axes
from tokopt.ir.lengths import is_longer, is_one, same_length, total
from tokopt.ir.movement import MOVES


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
    graph: fx.Graph,
    dims: Dims,
    value: fx.Node,
    tokens: Axis,
    *,
    unit: Sequence[Axis] = (),
    last_row_kept: bool = False,
) -> Region | Barrier:
    """Return the region downstream of ``value`` when ``tokens`` is shortened, or the barrier.

    ``unit``: the factors of ``tokens`` along which rows are dropped, the others staying whole (all
    of them where none is given).  ``last_row_kept`` says that the axis's last row is never dropped
    (the last prompt token).
    """
    tokens = tokens.root
    dropped = holes_of(unit or tokens.primes())
    items = _items(dims, value, tokens)
    region = Region()
    short: set[fx.Node] = {value}
    holes: dict[fx.Node, Holes] = {}
    computed: set[fx.Node] = set()  # values whose holes are not zeros any more
    node = value
    while node.next is not graph._root:
        node = node.next
        if node.op == "placeholder":
            continue
        unread = dims.uses[node].unread if node in dims.uses else ()
        operands = [a for a in node.all_input_nodes if a not in unread]
        carried = [a for a in operands if a in short and _carries(dims, a, tokens)]
        carried += [
            a for a in operands if a in holes and _in_place(dims, a, tokens, items, holes[a])
        ]
        if node.op == "output":
            filled = next((a for a in operands if a in computed), None)
            if filled is not None:
                return Barrier(filled, "an output is computed from rows that were regrouped")
            region.outputs = [a for a in carried if a in short]
            continue
        if is_factory(node) or not (carried or any(a in holes for a in operands)):
            if any(a in short for a in operands) and not is_factory(node):
                short.add(node)  # downstream, but no longer of the axis (a pooled vector)
            continue
        if node in dims.axes or node in dims.outs or operator_name(node) == "getitem":
            pass
        elif carried:
            return Barrier(node, "reads the size of the token axis")
        apart = _takes_items_apart(node, carried, dims, tokens, items)
        verdict = not apart and _judge(node, carried, dims, tokens, dropped, last_row_kept)
        if isinstance(verdict, Barrier):
            return verdict
        if verdict and all(a in carried for a in operands if a in holes):
            short.add(node)
            region.short.append(node)
            continue
        region.restores.extend((node, a) for a in carried if a in short)
        given = {a: holes.get(a, dropped if a in carried else {}) for a in operands}
        result = spread(node, dims, given)
        if isinstance(result, Barrier):
            return result
        if _is_merge(node, carried, holes):
            region.merges.append(node)
        elif result:
            holes[node] = result
            if operator_name(node) not in MOVED or any(a in computed for a in operands):
                computed.add(node)
    region.holes = set(holes)
    return region


def crossing_rows(nodes: Sequence[fx.Node], dims: Dims, tokens: Axis) -> fx.Node | None:
    """Return the first of some calls in which rows of an axis meet or move, None where none do.

    The others give of any rows what they give of them among all.
    """
    tokens = tokens.root
    dropped = holes_of(tokens.primes())
    for node in nodes:
        carried = [a for a in node.all_input_nodes if _carries(dims, a, tokens)]
        if operator_name(node) == "getitem" or not carried:
            continue
        met = any(
            dims.locate(dims.axes[operand][dim], tokens) is not None
            for operand, dim in dims.uses[node].folds
            if operand in carried
        )
        if met or _judge(node, carried, dims, tokens, dropped, False) is not True:
            return node
    return None


def _in_place(
    dims: Dims, node: fx.Node, tokens: Axis, items: tuple[Axis, ...], holes: Holes
) -> bool:
    """Return whether a value's holes are the rows that were dropped: it can be gathered again."""
    axes = dims.axes.get(node, [])
    found = [(axis, touched(axis, holes)) for axis in axes]
    together = all(any(dims.locate(axis, item) is not None for axis in axes) for item in items)
    return (
        together
        and any(here for _, here in found)
        and all(
            dims.locate(axis, tokens) is not None and not any(hole.moved for hole in here.values())
            for axis, here in found
            if here
        )
    )


def _carries(dims: Dims, node: fx.Node, tokens: Axis) -> bool:
    every = [dims.axes[node]] if node in dims.axes else dims.outs.get(node, [])
    return any(dims.locate(axis, tokens) is not None for axes in every for axis in axes)


def _items(dims: Dims, value: fx.Node, tokens: Axis) -> tuple[Axis, ...]:
    """Return the batch axes of the value that is cut."""
    axes = dims.axes[value]
    dim = next((d for d, axis in enumerate(axes) if dims.locate(axis, tokens) is not None), None)
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
    passing = [axes for axes in outs if any(dims.locate(a, tokens) is not None for a in axes)]
    return any(
        any(dims.locate(a, item) is not None for a in dims.axes.get(operand, []))
        and not all(any(dims.locate(a, item) is not None for a in axes) for axes in passing)
        for operand in carried
        for item in items
    )


def _judge(
    node: fx.Node,
    carried: list[fx.Node],
    dims: Dims,
    tokens: Axis,
    dropped: Mapping[Axis, Hole],
    last_row_kept: bool,
) -> bool | Barrier:
    """Return True where the call can run short, False where rows must be restored first."""
    if not carried:
        return False
    if operator_name(node) == "getitem":
        return True
    uses = dims.uses[node]
    outs = dims.outs.get(node) or [dims.axes[node]]
    pieces = {atom for atom in dims.atoms(tokens) if not is_one(atom.length)}
    passes = any(dims.locate(axis, tokens) is not None for axes in outs for axis in axes)
    broken = any(atom in pieces for axes in outs for axis in axes for atom in dims.atoms(axis))
    for operand in carried:
        for dim, axis in enumerate(dims.axes.get(operand, [])):
            if dims.locate(axis, tokens) is None:
                continue
            for mix in (m for m in uses.mixes if (m.operand, m.dim) == (operand, dim)):
                if mix.factor is None:
                    read = united(touched(axis, dropped).values()).sources
                    return Barrier(node, mix_reason(mix.reason, axis), read)
                if any(atom in pieces for atom in dims.atoms(mix.factor)):
                    return False  # some of the tokens are in one window: not all need be dropped
            if any((m.operand, m.dim) == (operand, dim) for m in uses.moves):
                return False
            for pick in uses.picks:
                if (pick.operand, pick.dim) == (operand, dim) and not _outside(
                    pick.start, pick.length, axis, dims, tokens, last_row_kept
                ):
                    return False
            picked = any((p.operand, p.dim) == (operand, dim) for p in uses.picks)
            if not passes and not picked and (operand, dim) not in uses.folds:
                return False if broken else Barrier(node, "no rule says what becomes of the rows")
    return not (broken and not passes)


def _outside(
    start: object, length: object, axis: Axis, dims: Dims, tokens: Axis, last_row_kept: bool
) -> bool:
    """Return whether a range of rows does not touch the token axis, or holds all of it."""
    place = dims.locate(axis, tokens)
    if place is not None and place.whole:
        whole = same_length(start, 0) and same_length(length, axis.root.length)
        end = same_length(total([start, length]), axis.root.length)
        return whole or (last_row_kept and end and is_one(length))
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


def _is_merge(node: fx.Node, carried: list[fx.Node], tainted: Mapping[fx.Node, Holes]) -> bool:
    if operator_name(node) == THREAD:
        return True
    if operator_name(node) not in MERGES:
        return False
    base = node.all_input_nodes[0]
    written = node.all_input_nodes[-1]
    return base is not written and (written in carried or written in tainted)


MOVED = MOVES | {"getitem"}
"""Calls whose results are rows as they were."""

THREAD = "aten::alias"
"""Where layers begin to read another stream across (``ir/cross.py``): holes leave there."""

MERGES = frozenset({"aten::masked_scatter", "aten::index_put"})
"""Operators that write rows of one sequence into run-time positions of another."""
