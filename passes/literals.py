"""Literals: the sizes a graph wrote down, patched through the axis class, never by number.

A dim whose axis holds the shortened token axis gets its new size; every other dim keeps its own,
even where the numbers are equal.
"""

from __future__ import annotations

import sys
from typing import Any

from torch import fx

from tokopt.ir.axis import Axis, Place, locate
from tokopt.ir.dims import describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.lengths import Length, is_longer, same_length, total
from tokopt.passes.workspace import Count, Workspace, aten

SIZES = {
    "aten::view": "size",
    "aten::_unsafe_view": "size",
    "aten::reshape": "shape",
    "aten::expand": "size",
    "aten::view_copy": "size",
    "aten::expand_copy": "size",
    "aten::broadcast_to": "size",
}
"""Operators with one size per output dim, and the argument that holds them."""

POOLS = {
    f"aten::{name}"
    for name in (
        "adaptive_avg_pool1d adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_avg_pool3d "
        "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d"
    ).split()
}
"""Operators with one size per pooled dim, the last dims of the output."""

RANGES = {"aten::slice", "aten::select", "aten::narrow"}
WITH_SIZES = {"aten::split_with_sizes", "aten::unflatten"}


def patch_literals(node: fx.Node, work: Workspace, tokens: Axis, rows: Count, kept: Count) -> None:
    """Rewrite a short call's sizes and ranges for ``kept`` rows instead of ``rows``."""
    name = operator_name(node)
    if name in SIZES:
        _sizes(node, SIZES[name], work, tokens, kept)
    elif name in POOLS:
        _pooled(node, work, tokens, kept)
    elif name in RANGES:
        _range(node, name, work, tokens, rows, kept)
    elif name == "aten::split_with_sizes":
        _split(node, work, tokens, kept)
    elif name == "aten::unflatten":
        _unflatten(node, work, tokens, kept)


def new_size(place: Place, work: Workspace, kept: Count) -> Count:
    """Return the size of a dim from where the token axis lies in it."""
    count: Count = kept
    for kind, children, index in reversed(place.path):
        for i, child in enumerate(children):
            if i == index:
                continue
            length = work.length(child)
            count = work.plus(count, length) if kind == "+" else work.times(count, length)
    return count


def _argument(node: fx.Node, name: str) -> tuple[Any, int | None]:
    target: Any = node.target
    schema = target._schema
    at = [a.name for a in schema.arguments].index(name)
    if at < len(node.args):
        return node.args[at], at
    return node.kwargs.get(name), None


def _set(node: fx.Node, name: str, value: Any) -> None:
    _, at = _argument(node, name)
    if at is None:
        node.update_kwarg(name, value)
    else:
        node.update_arg(at, value)


def _sizes(node: fx.Node, argument: str, work: Workspace, tokens: Axis, kept: Count) -> None:
    sizes = list(_argument(node, argument)[0])
    for dim, axis in enumerate(work.axes[node]):
        place = locate(axis, tokens)
        if place is not None and sizes[dim] != -1:
            inferred = -1 in sizes or operator_name(node) in ("aten::expand", "aten::expand_copy")
            free = not place.whole and not inferred and not isinstance(kept, int)
            sizes[dim] = -1 if free else new_size(place, work, kept)
    _set(node, argument, sizes)


def _pooled(node: fx.Node, work: Workspace, tokens: Axis, kept: Count) -> None:
    """Keep the window: as many windows as there are rows left for, no more."""
    given = _argument(node, "output_size")[0]
    axes = (work.axes.get(node) or work.facts.dims.outs[node][0])[-len(given) :]
    places = [locate(axis, tokens) for axis in axes]
    sizes = [
        size if place is None else new_size(place, work, kept)
        for size, place in zip(given, places, strict=True)
    ]
    _set(node, "output_size", sizes)


def _range(
    node: fx.Node, name: str, work: Workspace, tokens: Axis, rows: Count, kept: Count
) -> None:
    operand = node.all_input_nodes[0]
    axes = work.axes[operand]
    dim = (_argument(node, "dim")[0] or 0) % len(axes)
    place = locate(axes[dim], tokens)
    if place is None:
        return
    length = axes[dim].root.length
    if name == "aten::slice" and (_argument(node, "step")[0] or 1) != 1:
        _set(node, "end", sys.maxsize)  # one of every so many rows of each token
        return
    if name == "aten::narrow":
        _as_slice(node, operand, dim)
    if name == "aten::select":
        index = _argument(node, "index")[0]
        if not isinstance(index, int) or (index > 0 and _behind(index, place, tokens)):
            _set(node, "index", _from_end(index, length, node))
        return
    start, end = _argument(node, "start")[0], _argument(node, "end")[0]
    if start is not None and not (isinstance(start, int) and start <= 0):
        if not isinstance(start, int) or _behind(start, place, tokens):
            _set(node, "start", _from_end(start, length, node))
    if isinstance(end, fx.Node) or (isinstance(end, int) and 0 < end < sys.maxsize):
        value = _length(end)
        if same_length(value, length) or (isinstance(length, int) and is_longer(value, length)):
            _set(node, "end", sys.maxsize)
        elif _behind(value, place, tokens):
            _set(node, "end", _from_end(value, length, node))


def _as_slice(node: fx.Node, operand: fx.Node, dim: int) -> None:
    """Make a ``narrow`` the slice it is: a slice's end can be said to be the end."""
    start, length = _argument(node, "start")[0], _argument(node, "length")[0]
    if not isinstance(start, int) or not isinstance(length, int):
        raise UnsupportedError("a narrow of the token axis by symbolic sizes", where=describe(node))
    node.target = aten.slice.Tensor
    node.args, node.kwargs = (operand, dim, start, start + length), {}


def _length(value: Any) -> Length:
    if isinstance(value, fx.Node):
        symbol = value.meta["val"]
        return symbol if isinstance(symbol, int) else symbol.node.expr
    return value


def _behind(start: Any, place: Place, tokens: Axis) -> bool:
    """Return whether a position lies at or after the end of the token axis."""
    if not place.path:
        return True
    _, children, index = place.path[0]
    end = total([c.root.length for c in children[: index + 1]])
    return is_longer(end, _length(start)) is False


def _from_end(position: Any, length: Length, node: fx.Node) -> int:
    """Return a position as a negative one, counted from the dim's end."""
    value = _length(position)
    back = total([value, -length])
    if not isinstance(back, int) or back >= 0:
        raise UnsupportedError("a position on the token axis is symbolic", where=describe(node))
    return back


def _split(node: fx.Node, work: Workspace, tokens: Axis, kept: Count) -> None:
    sizes = list(_argument(node, "split_sizes")[0])
    dim = _argument(node, "dim")[0] or 0
    for which, axes in enumerate(work.facts.dims.outs[node]):
        place = locate(axes[dim % len(axes)], tokens)
        if place is not None:
            sizes[which] = new_size(place, work, kept)
    _set(node, "split_sizes", sizes)


def _unflatten(node: fx.Node, work: Workspace, tokens: Axis, kept: Count) -> None:
    sizes = list(_argument(node, "sizes")[0])
    dim = _argument(node, "dim")[0] % len(work.axes[node.all_input_nodes[0]])
    for offset in range(len(sizes)):
        place = locate(work.axes[node][dim + offset], tokens)
        if place is not None:
            sizes[offset] = new_size(place, work, kept)
    _set(node, "sizes", sizes)
