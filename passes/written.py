"""Written: rows that are written at given places of a sequence, in one of two forms.

A range that is overwritten (``x[:, a:b] = rows``) is a concatenation; rows at places that are
numbers (``scatter`` or ``index_copy`` along the rows) are an ``index_put``.  Both are exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tokopt.ir.dead import remove_dead
from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.lengths import same_shape
from tokopt.ir.trace import call

aten = torch.ops.aten


def unify_written_rows(graph: fx.Graph) -> None:
    """Rewrite what writes whole rows of ``[B, N, C]`` along N, into a value that is there already.

    Inputs (caches) are left alone, and what puts rows back in order, into a blank.
    """
    for node in list(graph.nodes):
        form = FORMS.get(operator_name(node)) if node.op == "call_function" else None
        value = node.meta.get("val")
        if form is None or not isinstance(value, torch.Tensor) or value.dim() != 3:
            continue
        base: Any = node.args[0]
        if (
            base.op == "placeholder"
            or operator_name(base) in BLANK
            or not value.is_floating_point()
        ):
            continue  # a cache; rows that are put back in order
        with graph.inserting_before(node):
            made = form(graph, **arguments_of(node))
        if made is not None:
            made.meta |= {k: v for k, v in node.meta.items() if k != "val"}
            node.replace_all_uses_with(made)
    remove_dead(graph)


def _range(graph: fx.Graph, **given: Any) -> fx.Node | None:
    """Return the rows in front of a range, those written and those behind it, as one ``cat``."""
    base, rows = given["self"], given["src"]
    start, end, length = given.get("start") or 0, given.get("end"), base.meta["val"].shape[1]
    if given.get("dim", 0) not in (1, -2) or given.get("step", 1) != 1 or not _int(start):
        return None
    if start < 0 or not _int(rows.meta["val"].shape[1]):
        return None
    while operator_name(rows) == "aten::copy":  # of rows in the shape and dtype that they have
        whole, own = rows.args[0].meta["val"], rows.args[1]
        value = own.meta["val"]
        if not same_shape(value.shape, whole.shape) or value.dtype != whole.dtype:
            break
        rows = own
    stop = start + rows.meta["val"].shape[1]
    parts = [rows]
    if start:
        parts.insert(0, call(graph, aten.slice.Tensor, base, 1, 0, start))
    to_the_end = end is None or (_int(end) and end >= LAST // 2)
    if not to_the_end and not (_int(length) and stop >= length):
        parts.append(call(graph, aten.slice.Tensor, base, 1, stop, LAST))
    return call(graph, aten.cat.default, parts, 1)


def _scatter(graph: fx.Graph, **given: Any) -> fx.Node | None:
    """Return an ``index_put`` where one number says where a whole row is written."""
    base, index, rows = given["self"], given["index"], given.get("src")
    spread = operator_name(index) in ("aten::expand", "aten::expand_as")
    if given["dim"] not in (1, -2) or not spread or not isinstance(rows, fx.Node):
        return None
    places = index.args[0]
    shapes = [v.meta["val"].shape for v in (base, index, rows, places)]
    whole = same_shape(shapes[1], shapes[2]) and same_shape(shapes[0][::2], shapes[1][::2])
    if not whole or not same_shape(shapes[3], [*shapes[1][:2], 1]):
        return None
    return _put(graph, base, call(graph, aten.squeeze.dim, places, -1), rows)


def _copy(graph: fx.Graph, **given: Any) -> fx.Node | None:
    """Return an ``index_put`` of rows that go to the same places in every item."""
    if given["dim"] not in (1, -2):
        return None
    places = call(graph, aten.unsqueeze.default, given["index"], 0)
    return _put(graph, given["self"], places, given["source"])


def _put(graph: fx.Graph, base: fx.Node, places: fx.Node, rows: fx.Node) -> fx.Node:
    batch = base.meta["val"].shape[0]
    count = batch if _int(batch) else call(graph, aten.sym_size.int, base, 0)
    items = call(graph, aten.arange.default, count, device=base.meta["val"].device)
    each = call(graph, aten.unsqueeze.default, items, 1)
    return call(graph, aten.index_put.default, base, [each, places], rows)


def _int(size: Any) -> bool:
    return isinstance(size, int)


LAST = 2**63 - 1
"""The end of a slice that goes to the last row."""

FORMS = {
    "aten::slice_scatter": _range,
    "aten::scatter": _scatter,
    "aten::index_copy": _copy,
}
"""Operators that write rows, and what makes the other form of a call."""

BLANK = frozenset(
    f"aten::{name}"
    for name in "zeros zeros_like new_zeros empty empty_like new_empty full full_like".split()
)
"""Operators that make a value that says nothing yet."""
