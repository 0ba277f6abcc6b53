"""Flat: rows on a plane become rows in one dim, along the skip connections.

Towers that keep ``[B, H, W, C]`` between their layers (for convolutions, or to cut windows) have no
dim along which single rows could leave.  Their additions are as well made on ``[B, H*W, C]``, and
what reads the sum reads it in its old shape: the stream is one of rows, all else stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch import fx

from tokopt.ir.dead import remove_dead
from tokopt.ir.dims import operator_name
from tokopt.ir.lengths import same_shape
from tokopt.ir.trace import call

aten = torch.ops.aten
ON_FEATURES = ("aten::layer_norm", "aten::rms_norm", "aten::linear")
"""Operators that read the last dim as features."""


PASSES = ("aten::dropout", "aten::to", "aten::_to_copy", "aten::contiguous", "aten::clone")
"""Operators that hand every element on, beside those torch itself calls pointwise."""


POOLS = ("aten::mean", "aten::amax", "aten::sum")
"""Operators that reduce the dims they are given."""


def flatten_planes(graph: fx.Graph) -> None:
    """Rewrite the streams whose values are ``[B, H, W, C]``, or of more dims.

    Their additions, and what is computed from a sum row by row, are made on ``[B, rows, C]``.
    """
    stream = set(_on_planes(graph))
    flat: dict[fx.Node, fx.Node] = {}
    for entry in [value for node in stream for value in map(_unturned, _operands(node))]:
        if entry not in stream and entry not in flat and len(entry.users) > 1:
            with graph.inserting_before(entry.next):
                made, back = _there_and_back(graph, entry)
            for user in set(entry.users) - {made}:
                user.replace_input_with(entry, back)
            flat[back] = made
    for node in list(graph.nodes) if stream else ():
        _pool_rows(graph, node, flat)
        if node not in stream and not _row_by_row(node, flat):
            continue
        shape = node.meta["val"].shape
        with graph.inserting_before(node):
            given: dict[fx.Node, fx.Node] = {}
            for operand in node.all_input_nodes:
                value = _unturned(operand)
                given[operand] = flat.get(value, operand)
                if node in stream and value not in flat:
                    given[operand] = _there_and_back(graph, value)[0]
            args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), given.__getitem__)
            made = call(graph, node.target, *args, **kwargs)
            back = call(graph, aten.reshape.default, made, [-1, *shape[1:]])
        made.meta |= {key: value for key, value in node.meta.items() if key != "val"}
        node.replace_all_uses_with(back)
        flat[back] = made
    remove_dead(graph)


def _pool_rows(graph: fx.Graph, node: fx.Node, flat: Mapping[fx.Node, fx.Node]) -> None:
    """Pool the rows of a plane in one dim, where a call pools both height and width."""
    if operator_name(node) not in POOLS or len(node.args) != 2 or node.kwargs.get("keepdim"):
        return
    value: Any = node.args[0]
    dims: Any = node.args[1]
    rank = value.meta["val"].dim()
    order = list(range(rank))
    if value not in flat and operator_name(value) == "aten::permute":
        order = [dim % rank for dim in value.args[1]]
        value = value.args[0]
    if value in flat and {order[dim % rank] for dim in dims} == set(range(1, rank - 1)):
        kwargs: Any = node.kwargs
        with graph.inserting_before(node):
            made = call(graph, node.target, flat[value], [1], **kwargs)
        made.meta |= {key: found for key, found in node.meta.items() if key != "val"}
        node.replace_all_uses_with(made)


def _there_and_back(graph: fx.Graph, value: fx.Node) -> tuple[fx.Node, fx.Node]:
    """Insert a value of planes as rows, and these as planes again."""
    shape = value.meta["val"].shape
    rows = call(graph, aten.reshape.default, value, [-1, prod(shape[1:-1]), shape[-1]])
    return rows, call(graph, aten.reshape.default, rows, [-1, *shape[1:]])


def _row_by_row(node: fx.Node, flat: Mapping[fx.Node, fx.Node]) -> bool:
    """Return whether a call computes each row of a plane from the same row of planes alone."""
    value = node.meta.get("val")
    given = {operand: _unturned(operand) for operand in node.all_input_nodes}
    planes = [operand for operand, own in given.items() if own in flat]
    if not planes or not isinstance(value, torch.Tensor) or value.dim() < 4:
        return False
    first: Any = node.args[0]
    if operator_name(node) in ON_FEATURES:
        whole = operator_name(node) == "aten::linear" or _width(node) == 1
        return planes == [first] and whole
    tags = getattr(node.target, "tags", ())
    if torch.Tag.pointwise not in tags and operator_name(node) not in PASSES:
        return False
    others = [operand.meta["val"] for operand in given if operand not in planes]
    shapes = [other.shape for other in others if isinstance(other, torch.Tensor)]
    same = all(same_shape(p.meta["val"].shape[:-1], value.shape[:-1]) for p in planes)
    return same and all(len(shape) < 2 for shape in shapes)


def _width(node: fx.Node) -> int:
    """Return over how many dims a norm is taken."""
    shape: Any = node.args[1]
    return len(shape)


def _on_planes(graph: fx.Graph) -> Iterator[fx.Node]:
    """Yield the additions of a stream on planes, in graph order."""
    sums = {node: None for node in graph.nodes if _adds_planes(node)}
    stream = {node for node in sums if _has_features(node)}
    for node in reversed(sums):  # what is added to a value of the stream, and what it is added to
        if node in stream:
            stream |= {operand for operand in _operands(node) if operand in sums}
    for node in sums:
        if any(operand in stream for operand in _operands(node)):
            stream.add(node)
    return (node for node in sums if node in stream)


def _adds_planes(node: fx.Node) -> bool:
    """Return whether a call adds two values ``[B, H, W, C]`` of one shape."""
    if node.target is not aten.add.Tensor or len(_operands(node)) < 2:
        return False
    one, other = (operand.meta["val"].shape for operand in _operands(node))
    numbers = all(isinstance(size, int) for size in one[1:])
    return len(one) > 3 and numbers and same_shape(one, other)


def _operands(node: fx.Node) -> list[fx.Node]:
    """Return the tensors among a call's first two arguments: sizes are added, too."""
    first = [operand for operand in node.args[:2] if isinstance(operand, fx.Node)]
    return [operand for operand in first if isinstance(operand.meta.get("val"), torch.Tensor)]


def _has_features(node: fx.Node) -> bool:
    """Return whether something reads the last dim of a sum, in whatever order, as features."""
    readers = [(node, node.meta["val"].dim() - 1)]
    for value, dim in readers:
        for user in value.users:
            args: Any = user.args
            if operator_name(user) == "aten::permute":
                order = [d % value.meta["val"].dim() for d in args[1]]
                if len(order) == len(node.meta["val"].shape):
                    readers.append((user, order.index(dim)))
            elif operator_name(user) in ON_FEATURES and args[0] is value:
                whole = operator_name(user) == "aten::linear" or _width(user) == 1
                if whole and dim == value.meta["val"].dim() - 1:
                    return True
    return False


def _unturned(value: fx.Node) -> fx.Node:
    """Return the value that two permutations, one the other's inverse, leave as it was."""
    outer: Any = value.args
    if operator_name(value) != "aten::permute" or operator_name(outer[0]) != "aten::permute":
        return value
    inner = outer[0].args
    rank = len(outer[1])
    order = [inner[1][dim % rank] % rank for dim in outer[1]]
    original: fx.Node = inner[0]
    return original if order == list(range(rank)) else value
