"""Matching: what passes over ONNX graphs ask of a value: what made it, and is it a constant."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir


def made_by(value: onnx_ir.Value | None, *kinds: str) -> onnx_ir.Node | None:
    """Return the node a value is the first output of, where it is of one of these standard ops."""
    node = value.producer() if value is not None else None
    fits = node is not None and node.domain == "" and node.op_type in kinds
    return node if fits and node is not None and node.outputs[0] is value else None


def constant(node: onnx_ir.Node, place: int) -> float | None:
    """Return the constant one-element input at ``place``; None where it is not that."""
    value = node.inputs[place] if place < len(node.inputs) else None
    tensor = onnx_ir.convenience.get_const_tensor(value) if value is not None else None
    if tensor is None or tensor.size != 1:
        return None
    return float(np.asarray(tensor.numpy()).reshape(()))


def sizes(value: onnx_ir.Value | None) -> list[int | str | None]:
    """Return a value's known shape, symbols as text; empty where its rank is not known."""
    if value is None or value.shape is None:
        return []
    return [size if isinstance(size, int) else size.value for size in value.shape]


def pairs(node: onnx_ir.Node) -> Iterator[tuple[onnx_ir.Value, onnx_ir.Value]]:
    """Yield the two inputs of a commutative operator in both orders."""
    one, other = node.inputs
    if one is not None and other is not None:
        yield one, other
        yield other, one


def put_in_place(graph: onnx_ir.Graph, old: onnx_ir.Node, new: list[onnx_ir.Node]) -> None:
    """Insert nodes before ``old``, the last of which takes its only output's place and name."""
    was, made = old.outputs[0], new[-1].outputs[0]
    made.shape, made.type, made.name = was.shape, was.type, was.name
    graph.insert_before(old, new)
    was.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(old, safe=True)
