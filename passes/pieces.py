"""Pieces: a loop over equal pieces of a value is one run over a batch of pieces.

Packed towers write such loops: the rows of all images (or windows) lie in one dim, are split, each
piece attends to itself, and the results are put together again.  Where all pieces are of one shape
and see the same calls, the loop becomes those calls on the stacked pieces ``[n, ...]``: fewer and
larger calls, and a graph in which the rows of one piece are a batch item's, so that each image may
keep rows of its own.  A loop in which no call reads several rows at once stays as it is.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tokopt.ir.dead import remove_dead
from tokopt.ir.dims import operator_name
from tokopt.ir.trace import call
from tokopt.passes.stacked import COMBINE, STACKED, on_stacked

aten = torch.ops.aten
Group = tuple[fx.Node, ...]
"""What each piece has in the same place, in the order of the pieces."""

SPLITS = ("aten::split_with_sizes", "aten::split", "aten::chunk")
RANGES = ("aten::slice", "aten::narrow")
TOLD = ("nn_module_stack", "stack_trace", "source_fn_stack")
"""What a call's meta says of the user's program."""


def batch_pieces(graph: fx.Graph) -> None:
    """Replace every loop over equal pieces that ends in one ``cat`` of their results."""
    for node in graph.find_nodes(op="call_function", target=aten.cat.default):
        pieces: Any = node.args[0]
        if len(pieces) < 2 or len(set(pieces)) < len(pieces):
            continue
        loop = _Loop(graph, len(pieces))
        with graph.inserting_before(node):
            stacked = loop.stacked(tuple(pieces))
            if stacked not in (None, pieces[0]) and loop.combines:
                given = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
                node.replace_all_uses_with(_together(graph, stacked, given))
    remove_dead(graph)


class _Loop:
    """One loop's groups, and the stacked values ``[n, *piece]`` that stand for them."""

    def __init__(self, graph: fx.Graph, count: int) -> None:
        self.graph, self.count = graph, count
        self.known: dict[Group, fx.Node] = {}
        self.combines = False

    def stacked(self, group: Group) -> fx.Node | None:
        """Return the stacked values of a group, or None where they are no pieces of one value.

        The first of them where all are equal.  Loops may hold whole towers: no recursion.
        """
        waiting = [group]
        while waiting:
            made = self.known.get(waiting[-1]) or self._source(waiting[-1])
            operands = [] if made is not None else self._operands(waiting[-1])
            if operands is None:
                return None
            missing = [one for one in operands if one not in self.known]
            if missing:
                waiting += missing
                continue
            made = made or self._part(waiting[-1]) or self._called(waiting[-1])
            if made is None:
                return None
            self.known[waiting.pop()] = made
        return self.known[group]

    def _operands(self, group: Group) -> list[Group] | None:
        """Return the groups that a group's calls read; None where the calls are not alike."""
        first = group[0]
        if all(operator_name(node) == "getitem" for node in group):
            readers: list[Any] = [node.args[0] for node in group]
            values = tuple(reader.args[0] for reader in readers)
            return [values] if len(set(values)) > 1 else []
        if first.op != "call_function" or not all(_alike(first, node) for node in group):
            return None
        read = list(zip(*map(_read, group), strict=True))
        alone = {operands[0]: operands for operands in read}
        if any(alone[operands[0]] != operands for operands in read):
            return None  # what is one value for the first piece is two for another
        return [operands for operands in read if len(set(operands)) > 1]

    def _source(self, group: Group) -> fx.Node | None:
        """Return the pieces of a value that tile it, in order."""
        ranges = [found for found in map(_range, group) if found is not None]
        if len(ranges) < self.count:
            return None
        value, dim, _, length = ranges[0]
        starts = [number * length for number in range(self.count)]
        same = all(each[:2] == (value, dim) and each[3] == length for each in ranges)
        covered = value.meta["val"].shape[dim] == self.count * length
        if not (same and covered and [each[2] for each in ranges] == starts):
            return None
        return _apart(self.graph, value, dim, self.count)

    def _part(self, group: Group) -> fx.Node | None:
        """Return one result of a call that takes each piece apart (``unbind``, a split)."""
        first = group[0]
        if any(operator_name(node) != "getitem" for node in group):
            return None
        readers: list[Any] = [node.args[0] for node in group]
        if len({node.args[1] for node in group}) > 1:
            return None
        forms = {(r.target, str(r.args[1:]), str(r.kwargs)) for r in readers}
        values = tuple(r.args[0] for r in readers)
        if len(forms) > 1:
            return None
        if len(set(values)) == 1:
            return first
        given = self.known[values]
        found = _range(first)
        if found is not None:
            _, dim, start, length = found
            return call(self.graph, aten.slice.Tensor, given, dim + 1, start, start + length)
        reader = readers[0]
        if operator_name(reader) != "aten::unbind":
            return None
        dim = reader.args[1] if len(reader.args) > 1 else reader.kwargs.get("dim", 0)
        rank = given.meta["val"].dim() - 1
        return call(self.graph, aten.select.int, given, dim % rank + 1, first.args[1])

    def _called(self, group: Group) -> fx.Node | None:
        """Return a call on stacked operands; what all pieces read in common stays as it is."""
        first = group[0]
        rule = STACKED.get(operator_name(first))
        if rule is None and torch.Tag.pointwise not in getattr(first.target, "tags", ()):
            return None
        read = zip(*map(_read, group), strict=True)
        given = {o[0]: o[0] if len(set(o)) == 1 else self.known[o] for o in read}
        own = [node for node, made in given.items() if made is not node]
        if not own:
            return first  # every piece makes the same of what all read
        if rule is None and {node.meta["val"].dim() for node in own} != {first.meta["val"].dim()}:
            return None
        made = (rule or on_stacked)(self.graph, first, given)
        if made is not None:
            made.meta |= {key: first.meta[key] for key in TOLD if key in first.meta}
            self.combines |= operator_name(first) in COMBINE
        return made


def _read(node: fx.Node) -> list[fx.Node]:
    """Return a call's operands in order, one that is read twice twice."""
    found: list[fx.Node] = []
    fx.node.map_arg((node.args, dict(node.kwargs)), found.append)
    return found


def _apart(graph: fx.Graph, value: fx.Node, dim: int, count: int) -> fx.Node:
    """Stack the pieces of a dim: ``[.., n * L, ..]`` becomes ``[n, .., L, ..]``."""
    shape = list(value.meta["val"].shape)
    sizes = [*shape[:dim], count, shape[dim] // count, *shape[dim + 1 :]]
    cut = call(graph, aten.reshape.default, value, _literal(sizes))
    order = [dim, *(d for d in range(len(sizes)) if d != dim)]
    return cut if dim == 0 else call(graph, aten.permute.default, cut, order)


def _together(graph: fx.Graph, stacked: fx.Node, dim: Any) -> fx.Node:
    """Put stacked pieces behind one another along a dim of theirs."""
    shape = list(stacked.meta["val"].shape)
    dim = dim % (len(shape) - 1)
    order = [*range(1, dim + 1), 0, *range(dim + 1, len(shape))]
    rows = stacked if dim == 0 else call(graph, aten.permute.default, stacked, order)
    sizes = [*shape[1 : dim + 1], shape[0] * shape[dim + 1], *shape[dim + 2 :]]
    return call(graph, aten.reshape.default, rows, _literal(sizes))


def _literal(sizes: list[Any]) -> list[int]:
    """Return sizes as numbers, -1 for the one that is free."""
    return [size if isinstance(size, int) else -1 for size in sizes]


def _alike(one: fx.Node, other: fx.Node) -> bool:
    """Return whether two calls do the same to operands of the same shapes, all but one known."""

    def form(node: fx.Node) -> str:
        shapes = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: str(n.meta["val"].shape))
        return f"{node.target} {shapes}"

    values: list[Any] = [other.meta.get("val"), *(n.meta.get("val") for n in other.all_input_nodes)]
    return (
        other.op == "call_function"
        and all(isinstance(value, torch.Tensor) for value in values)
        and all(sum(not isinstance(s, int) for s in value.shape) < 2 for value in values)
        and form(one) == form(other)
    )


def _range(node: fx.Node) -> tuple[fx.Node, int, int, int] | None:
    """Return (value, dim, start, length) of a node that is a range of a value's rows."""
    is_part = operator_name(node) == "getitem"
    reader: Any = node.args[0] if is_part else node
    if not isinstance(reader, fx.Node) or not isinstance(node.meta.get("val"), torch.Tensor):
        return None
    if operator_name(reader) not in (SPLITS if is_part else RANGES):
        return None
    value: Any = reader.args[0]
    shape, position = value.meta["val"].shape, 2 if is_part else 1
    given: Any = reader.args[position] if len(reader.args) > position else 0
    dim = reader.kwargs.get("dim", given) % len(shape)
    length = node.meta["val"].shape[dim]
    if is_part:
        number: Any = node.args[1]
        start: Any = sum(part.shape[dim] for part in reader.meta["val"][:number])
    else:
        start = reader.args[2] if len(reader.args) > 2 else 0
        if len(reader.args) > 4 and reader.args[4] != 1:
            return None
    numbers = all(isinstance(size, int) for size in (start, length, shape[dim]))
    known = sum(not isinstance(size, int) for size in shape) < 2
    return (value, dim, start, length) if numbers and known and start >= 0 else None
