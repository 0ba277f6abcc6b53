"""One dim: what cross-attention reads, seen with all its rows in one dim.

A vision encoder that works on tiles hands over ``[tiles, rows, C]``; keys and values are projected
there and flattened to ``[tiles * rows, d]`` afterwards.  Then no single dim holds the rows that the
attention reads.  Before: ``view(project(x))``.  After: ``view(project(flat))`` with one
``flat = reshape(x)`` for all.  Sound because a projection treats rows one by one and a reshape
keeps the order of the elements.
"""

from __future__ import annotations

import torch
from torch import fx

from tokopt.ir.attention import Attention
from tokopt.ir.axis import Axis, locate
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims, operator_name
from tokopt.ir.lengths import is_one
from tokopt.ir.trace import call, fake_mode_of

VIEWS = frozenset(f"aten::{name}" for name in "view reshape _unsafe_view unflatten".split())
PER_ROW = frozenset(f"aten::{name}" for name in "linear layer_norm rms_norm to _to_copy".split())
"""Operators that treat rows one by one and hold no size of them."""


def in_one_dim(
    graph: fx.Graph, attentions: list[Attention], dims: Dims, dependence: Dependence
) -> bool:
    """Flatten what cross-attentions read from several dims, in place; return whether any did."""
    flats: dict[fx.Node, fx.Node] = {}
    for attention in attentions:
        for operand in (attention.key, attention.value):
            path = _path(operand, attention.keys, dims, dependence)
            if path is None:
                continue
            source, projections, view = path
            if source not in flats:
                flat = _flat(graph, source, view, attention.keys, dims)
                if flat is None:
                    continue
                flats[source] = flat
            _project(graph, flats[source], source, projections, view)
    return bool(flats)


def _path(
    operand: fx.Node, keys: Axis, dims: Dims, dependence: Dependence
) -> tuple[fx.Node, list[fx.Node], fx.Node] | None:
    """Return the value with the rows in several dims, its projections, the view that joins them."""
    above = dependence.common_ancestors(operand)
    view = next((n for n in above if _joins(n, keys, dims)), None)
    if view is None:
        return None
    projections: list[fx.Node] = []
    node = view.all_input_nodes[0]
    while operator_name(node) in PER_ROW and node not in dims.learned:
        projections.append(node)
        node = node.all_input_nodes[0]
    spread = [f.root for f in keys.root.factors if not is_one(f.root.length)]
    held = sum(locate(a, f) is not None for f in spread for a in dims.axes.get(node, []))
    if not projections or len(spread) < 2 or held != len(spread):
        return None
    return node, projections[::-1], view


def _joins(node: fx.Node, keys: Axis, dims: Dims) -> bool:
    """Return whether a view puts the rows of several dims into one."""
    if operator_name(node) not in VIEWS or not _in_one(node, keys, dims):
        return False
    return not _in_one(node.all_input_nodes[0], keys, dims)


def _in_one(node: fx.Node, keys: Axis, dims: Dims) -> bool:
    return any(locate(axis, keys) is not None for axis in dims.axes.get(node, []))


def _flat(
    graph: fx.Graph, source: fx.Node, view: fx.Node, keys: Axis, dims: Dims
) -> fx.Node | None:
    """Insert the source with its rows in one dim, the dims before it as in the view."""
    axes = dims.axes[view]
    at = next((d for d, axis in enumerate(axes) if locate(axis, keys) is not None), None)
    if at is None:
        return None
    sizes = [*view.meta["val"].shape[: at + 1], source.meta["val"].shape[-1]]
    known = [size if isinstance(size, int) else -1 for size in sizes]
    if known.count(-1) > 1:
        return None
    with graph.inserting_after(source):
        return call(graph, torch.ops.aten.reshape.default, source, known, mode=fake_mode_of(graph))


def _project(
    graph: fx.Graph, flat: fx.Node, source: fx.Node, projections: list[fx.Node], view: fx.Node
) -> None:
    projected = {source: flat}
    with graph.inserting_before(view):
        for old in projections:
            args = fx.node.map_arg(old.args, lambda n: projected.get(n, n))
            new = call(graph, old.target, *args, mode=fake_mode_of(graph), **old.kwargs)
            new.meta = {**old.meta, "val": new.meta["val"]}
            projected[old] = new
    view.replace_input_with(view.all_input_nodes[0], projected[projections[-1]])
