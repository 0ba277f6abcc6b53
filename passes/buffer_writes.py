"""Buffer writes: where a program writes rows into a cache of a fixed length and gives it back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.binding import held_value
from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.lengths import length_of, same_length
from tokopt.ir.tensors import tensor_inputs, tensor_outputs
from tokopt.passes.written import BLANK

SAME = frozenset(f"aten::{n}" for n in "alias clone contiguous detach to _to_copy".split())
"""Operators that hand on a value: a buffer, or a place."""

SHAPED = SAME | {
    f"aten::{n}" for n in "view reshape unsqueeze squeeze select slice expand flatten".split()
}
"""Operators after which one number is still that number."""


@dataclass(frozen=True)
class Write:
    """``node`` is ``base`` with ``rows`` (which may be broadcast) written into it along ``dim``.

    One row goes to the place that the input ``slot`` tells; without it rows go to the first places.
    """

    node: fx.Node
    base: fx.Node
    dim: int
    rows: fx.Node
    slot: fx.Node | None


@dataclass(frozen=True)
class Ends:
    """A program's tensor inputs and outputs, and its stored numbers that are 0."""

    inputs: set[fx.Node]
    outputs: set[fx.Node]
    zeros: set[fx.Node]

    @staticmethod
    def of(exported: ExportedProgram) -> Ends:
        """Read them off a program."""
        nodes = {node.name: node for node in exported.graph.nodes}
        held = {
            nodes[spec.arg.name]: held_value(exported, spec)
            for spec in exported.graph_signature.input_specs
            if getattr(spec.arg, "name", None) in nodes and spec.kind is not InputKind.USER_INPUT
        }
        numbers = [
            (node, value.item())
            for node, value in held.items()
            if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point()
        ]
        return Ends(
            {nodes[tensor.name] for tensor in tensor_inputs(exported)},
            {nodes[tensor.name] for tensor in tensor_outputs(exported)},
            {node for node, number in numbers if number == 0},
        )


def find_writes(exported: ExportedProgram) -> list[Write]:
    """Return the writes into buffers that are given back; none where any is of another form."""
    ends = Ends.of(exported)
    inputs, back, found = ends.inputs, {_source(node) for node in ends.outputs}, list[Write]()
    for node in exported.graph.nodes:
        value = node.meta.get("val")
        if node not in back or operator_name(node) not in FORMS or not isinstance(value, Tensor):
            continue
        form = FORMS[operator_name(node)](node)
        if form is None or value.ndim < 3 or not value.is_floating_point():
            return []
        base, dim, index, rows = form
        base, dim = _source(base), dim % value.ndim
        constant = isinstance(value.shape[dim], int)
        if not constant or (base not in inputs and operator_name(base) not in BLANK):
            return []
        count = (rows if index is None else index).meta["val"].shape[dim if index is None else 0]
        slot = None
        if isinstance(count, int) and count == 1:
            slot = None if index is None else _slot(index, ends)
            if slot is None or base not in inputs:
                return []
        elif index is not None and not _from_first(index, count, ends):
            return []
        found.append(Write(node, base, dim, rows, slot))
    bases = [one.base for one in found if one.base in inputs]
    return found if len(set(bases)) == len(bases) else []


def _slot(index: fx.Node, ends: Ends) -> fx.Node | None:
    """Return the input whose one number an index is; None for anything else."""
    while index not in ends.inputs:
        name = operator_name(index)
        if name in SHAPED:
            index = index.all_input_nodes[0]
        elif name == "aten::add":
            terms: Any = [a for a in index.args[:2] if not _zero(a, ends)]
            if len(terms) != 1 or not isinstance(terms[0], fx.Node) or "alpha" in index.kwargs:
                return None
            index = terms[0]
        else:
            return None
    value = index.meta["val"]
    one = all(isinstance(size, int) and size == 1 for size in value.shape)
    return index if one and not value.is_floating_point() else None


def _zero(value: Any, ends: Ends) -> bool:
    """Whether a term is 0: the number, a stored one, a range of one, zeros."""
    if not isinstance(value, fx.Node):
        return bool(value == 0)
    if value in ends.zeros:
        return True
    name = operator_name(value)
    if name in SHAPED:
        return _zero(value.all_input_nodes[0], ends)
    if name == "aten::arange":
        given = arguments_of(value)
        return (given.get("start") or 0) == 0 and value.meta["val"].numel() == 1
    return name in ("aten::zeros", "aten::zeros_like", "aten::new_zeros")


def _from_first(index: fx.Node, count: Any, ends: Ends) -> bool:
    """Whether an index is 0, 1, ... or places that an input tells, which a gate looks at."""
    index = _source(index)
    if index in ends.inputs:
        return not index.meta["val"].is_floating_point()
    if operator_name(index) == "aten::add":
        terms: Any = [a for a in index.args[:2] if not _zero(a, ends)]
        return len(terms) == 1 and _from_first(terms[0], count, ends)
    if operator_name(index) != "aten::arange":
        return False
    given = arguments_of(index)
    size = length_of(index.meta["val"].shape[0])
    plain = (given.get("start") or 0) == 0 and (given.get("step") or 1) == 1
    return plain and same_length(size, length_of(count))


def _source(node: fx.Node) -> fx.Node:
    """Return what a value is handed on from."""
    while operator_name(node) in SAME:
        before = node.all_input_nodes[0]
        if before.meta["val"].dtype != node.meta["val"].dtype:
            break
        node = before
    return node


Form = tuple[fx.Node, int, fx.Node | None, fx.Node]
"""Base, dim, index (None: from the first place on), rows."""


def _copy(node: fx.Node) -> Form | None:
    given = arguments_of(node)
    return given["self"], given["dim"], given["index"], given["source"]


def _put(node: fx.Node) -> Form | None:
    given = arguments_of(node)
    places = [(d, index) for d, index in enumerate(given["indices"]) if index is not None]
    if len(places) != 1 or given.get("accumulate") or places[0][1].meta["val"].ndim != 1:
        return None
    if places[0][1].meta["val"].dtype in (torch.bool, torch.uint8):
        return None
    dim, index = places[0]
    return given["self"], dim, index, given["values"]


def _range(node: fx.Node) -> Form | None:
    given = arguments_of(node)
    if (given.get("start") or 0) != 0 or (given.get("step") or 1) != 1:
        return None
    return given["self"], given.get("dim") or 0, None, given["src"]


FORMS = {
    "aten::index_copy": _copy,
    "aten::index_put": _put,
    "aten::slice_scatter": _range,
}
"""Operators that write rows along one dim."""
