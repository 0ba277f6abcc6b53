"""Counted: a cache may be longer than its rows, and is told how many these are.

GroupQueryAttention writes a new row behind the others where the cache it is given and the one it
gives are one piece of memory with room left; else it copies all rows first.  Then the rows are
fewer than the cache's size says.  So each size that only such caches have becomes a further input
with a default (ONNX's overridable initializers): ``rows_of_<cache>``, int64 ``[1]``, by default -1,
which stands for the cache's own size.  Who does not give it runs the model as before.

What is written in place is in the model's metadata (``KEY``): for each cache, the output that is
the cache with its new row, and the input that counts its rows.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir

KEY = "tokopt.in_place"
ROWS_OF = "rows_of_"
SIZES = "Shape"
ROWS = 2
"""The dim of a cache ``[B, H, T, D]`` that counts its rows."""


@dataclass(frozen=True)
class InPlace:
    """``grown`` is the output that may lie where a cache lies; ``rows`` counts the cache's rows.

    None where nothing asks for the cache's size, and the mask's or another cache's is enough.
    """

    grown: str
    rows: str | None


def read_in_place(metadata: Mapping[str, str]) -> dict[str, InPlace]:
    """Return, by cache, what a model's metadata say of it."""
    return {name: InPlace(*one) for name, one in json.loads(metadata.get(KEY, "{}")).items()}


def count_rows(model: onnx_ir.Model) -> None:
    """Give a model counts of rows, where its caches may be written in place."""
    graph, layers = model.graph, _layers(model.graph)
    sizes, good = _by_size(graph), {cache for layer in layers for cache in layer}
    while True:  # until all caches of a size are good, and both of a layer
        whole = {cache for members in sizes if good.issuperset(members) for cache in members}
        both = {cache for layer in layers if whole.issuperset(layer) for cache in layer}
        if both == good:
            break
        good = both
    grown, found = {k: v for layer in layers for k, v in layer.items()}, {}
    for members in sizes:
        if good.issuperset(members):
            asking = [node for one in members for node in one.consumers() if _asks(node)]
            rows = _counted(graph, members[0], asking) if asking else None
            for one in members:
                found[str(one.name)] = [grown[one].name, None if rows is None else rows.name]
    if found:
        model.metadata_props[KEY] = json.dumps(found)


def _layers(graph: onnx_ir.Graph) -> list[dict[onnx_ir.Value, onnx_ir.Value]]:
    """Return the inputs that operators take as their caches, and the outputs they give for them.

    Left out are layers whose caches are read by something else, before or behind.
    """
    found = []
    for node in graph:
        if node.op_type == "GroupQueryAttention":
            layer = zip(node.inputs[3:5], node.outputs[1:3], strict=True)
            pairs = {past: grown for past, grown in layer if past is not None}
            ends = all(a.is_graph_input() and b.is_graph_output() for a, b in pairs.items())
            alone = all(_read_alone(a) and not b.consumers() for a, b in pairs.items())
            if len(pairs) == 2 and ends and alone:
                found.append(pairs)
    return found


def _by_size(graph: onnx_ir.Graph) -> list[list[onnx_ir.Value]]:
    """Return the inputs of four dims by the free size of their rows."""
    found: dict[str, list[onnx_ir.Value]] = {}
    for one in graph.inputs:
        rows = one.shape[ROWS] if one.shape is not None and len(one.shape) == 4 else None
        if isinstance(rows, onnx_ir.SymbolicDim):
            found.setdefault(str(rows.value), []).append(one)
    return list(found.values())


def _read_alone(cache: onnx_ir.Value) -> bool:
    """Whether one operator reads a cache, and others ask for nothing but its sizes."""
    readers = [node for node in cache.consumers() if node.op_type != SIZES]
    return len(readers) == 1 and all(
        list(_range(node)) == [ROWS] for node in cache.consumers() if _asks(node)
    )


def _range(node: onnx_ir.Node) -> range:
    """Return the dims whose sizes a ``Shape`` gives."""
    start, end = (node.attributes.get(name) for name in ("start", "end"))
    return range(4)[slice(start.as_int() if start else None, end.as_int() if end else None)]


def _asks(node: onnx_ir.Node) -> bool:
    """Whether a node asks for how many rows a cache has."""
    return node.op_type == SIZES and ROWS in _range(node)


def _counted(
    graph: onnx_ir.Graph, cache: onnx_ir.Value, asking: Collection[onnx_ir.Node]
) -> onnx_ir.Value:
    """Give a graph an input with a default, which stands for the size that nodes ask for."""
    value = onnx_ir.tensor(np.array([-1], np.int64), name=f"{ROWS_OF}{cache.name}")
    rows = onnx_ir.Value(
        name=value.name,
        shape=onnx_ir.Shape([1]),
        type=onnx_ir.TensorType(onnx_ir.DataType.INT64),
        const_value=value,
    )
    graph.inputs.append(rows)
    graph.initializers[str(rows.name)] = rows
    for node in asking:
        _told(graph, node, rows)
    return rows


def _told(graph: onnx_ir.Graph, node: onnx_ir.Node, rows: onnx_ir.Value) -> None:
    """Let a count stand for the size that a node asks for, where it is given."""
    (size,) = node.outputs
    zero = onnx_ir.node("Constant", [], {"value_ints": [0]})
    missing = onnx_ir.node("Less", [rows, zero.outputs[0]])
    chosen = onnx_ir.node("Where", [missing.outputs[0], size, rows])
    for part, made in (("zero", zero), ("missing", missing), ("rows", chosen)):
        made.outputs[0].name = f"{size.name}_counted_{part}"
    chosen.outputs[0].shape, chosen.outputs[0].type = size.shape, size.type
    size.replace_all_uses_with(chosen.outputs[0])
    chosen.replace_input_with(1, size)
    graph.insert_after(node, [zero, missing, chosen])
