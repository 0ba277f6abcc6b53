"""Fusions: which regions of a graph are one operator each, and which are written out, and why.

Read from the graph that ONNX Runtime executes (``executed.py``), not from the one that was saved:
an operator that the runtime has no kernel for is taken apart there and shows as written out.
Regions are told by structure alone: a softmax that weighs rows (attention), the root of a mean
(normalisation), a value beside its turned halves (rotary), a sum that is normalised next (skip),
and what picks rows by number or makes weights to pick them by (scoring).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir

from tokopt.targets.onnx.matching import made_by, sizes

KINDS = ("attention", "normalisation", "rotary", "skip", "scoring")
"""What is told apart, in the order in which it is shown."""

OPERATORS = {
    "Attention": "attention",
    "MultiHeadAttention": "attention",
    "GroupQueryAttention": "attention",
    "LayerNormalization": "normalisation",
    "SimplifiedLayerNormalization": "normalisation",
    "RMSNormalization": "normalisation",
    "GroupNormalization": "normalisation",
    "GroupNorm": "normalisation",
    "InstanceNormalization": "normalisation",
    "RotaryEmbedding": "rotary",
    "SkipLayerNormalization": "skip",
    "SkipSimplifiedLayerNormalization": "skip",
    "TopK": "scoring",
}
"""The operators that stand for a whole region, of ONNX or of the runtime's own domain."""

PASSED = (
    "Cast",
    "Dropout",
    "Expand",
    "Identity",
    "Mul",
    "Reshape",
    "Squeeze",
    "Transpose",
    "Where",
)
"""What a softmax's weights may go through before they weigh rows."""


@dataclass(frozen=True)
class Region:
    """One region: its kind, the operator and name of its (main) node, is it fused; if not, why."""

    kind: str
    operator: str
    node: str
    fused: bool
    why: str = ""


def fusions(graph: onnx_ir.Graph) -> list[Region]:
    """Return every region of a graph and of its subgraphs, in the order of ``KINDS``."""
    found: list[Region] = []
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        kind = OPERATORS.get(node.op_type)
        if kind is not None:
            name = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            found.append(Region(kind, name, node.name or "", True))
        found.extend(_written_out(node))
    return sorted(found, key=lambda region: KINDS.index(region.kind))


def _written_out(node: onnx_ir.Node) -> Iterator[Region]:
    """Yield the region that ``node`` is the mark of, where it is written out."""
    for kind, why in (
        ("attention", _weighs_rows(node)),
        ("normalisation", _is_root(node)),
        ("rotary", _turns(node)),
        ("skip", _normalises_a_sum(node)),
        ("scoring", _makes_scores(node)),
    ):
        if why:
            yield Region(kind, node.op_type, node.name or "", False, why)


def _weighs_rows(node: onnx_ir.Node) -> str:
    """Say why the attention around a softmax is not one operator; empty where there is none."""
    readers = _readers(node.outputs[0]) if node.op_type == "Softmax" else []
    beside = [user.op_type for user in readers if not _weighs(user, node.outputs[0])]
    if len(beside) == len(readers):
        return ""
    others = sorted(set(beside) - {"IsNaN"})
    if others:
        return f"its weights are read by {', '.join(others)} too"
    rank = len(sizes(node.outputs[0]))
    if rank not in (0, 4):
        return f"{rank} dims, where Attention takes 4"
    return "not of a form and type that the runtime has Attention for"


def _makes_scores(node: onnx_ir.Node) -> str:
    if node.op_type != "Softmax" or _weighs_rows(node) or not _picks(node.outputs[0]):
        return ""
    return "rows are picked by these weights, and no operator gives an attention's weights alone"


def _is_root(node: onnx_ir.Node) -> str:
    """Say why a norm, told by the root of a mean plus a number, is not one operator."""
    total = made_by(node.inputs[0], "Add") if node.op_type == "Sqrt" else None
    means = [made_by(side, "ReduceMean") for side in total.inputs] if total is not None else []
    if not any(means):
        return ""
    return "not the mean over the last dim with one scale per column, or in a type of its own"


def _turns(node: onnx_ir.Node) -> str:
    """Say why a rotation, told by a value's halves changing places, is not one operator."""
    halves = list(node.inputs) if node.op_type == "Concat" else []
    if len(halves) != 2 or made_by(halves[0], "Neg") is None:
        return ""
    products = [user for user in _readers(node.outputs[0]) if user.op_type == "Mul"]
    if not any(user.op_type == "Add" for one in products for user in _readers(one.outputs[0])):
        return ""
    rank = len(sizes(node.outputs[0]))
    if rank not in (0, 4):
        return f"{rank} dims, where four are joined"
    types = {value.dtype for one in products for value in one.inputs if value is not None}
    if len(types) > 1:
        return "rows and angles are not of one type"
    return "rows and angles of sizes that do not fit, or angles not seen to repeat in both halves"


def _normalises_a_sum(node: onnx_ir.Node) -> str:
    if node.op_type not in OPERATORS or OPERATORS[node.op_type] != "normalisation":
        return ""
    total = made_by(node.inputs[0], "Add")
    if total is None or any(side is None or side.producer() is None for side in total.inputs):
        return ""  # a bias, or rows that come from outside
    return "kept apart: sum and norm are faster as two operators on CPU"


def _weighs(user: onnx_ir.Node, weights: onnx_ir.Value) -> bool:
    """Whether ``user`` is, or leads to, a product of matrices with the weights on its left."""
    if user.op_type in ("MatMul", "FusedMatMul", "Einsum", "Gemm"):
        return user.inputs[0] is weights
    after = user.outputs[0]
    return user.op_type in PASSED and any(_weighs(one, after) for one in _readers(after))


def _picks(value: onnx_ir.Value) -> bool:
    """Whether rows are picked, by rank or by maximum, by what is computed from a value."""
    seen, waiting = set[onnx_ir.Node](), _readers(value)
    while waiting:
        node = waiting.pop()
        if node.op_type in ("TopK", "ArgMax"):
            return True
        if node not in seen:
            seen.add(node)
            waiting += [user for made in node.outputs for user in _readers(made)]
    return False


def _readers(value: onnx_ir.Value) -> list[onnx_ir.Node]:
    return [use.node for use in value.uses()]
