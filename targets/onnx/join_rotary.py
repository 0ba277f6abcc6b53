"""Rotary embeddings, written out in seven operators, become ``RotaryEmbedding`` (opset 23).

``x · cos + concat(-right half of x, left half) · sin`` rotates pairs of columns by one angle each,
if both halves of cos are equal, and of sin.  That is shown from what made them (``_repeats``):
the halves were one value written twice, and nothing since told them apart.  Everything else stays
written out.  Measured on ONNX Runtime 1.32 CPU, 8 heads of 640 rows of 64: 0.47 to 0.17 ms.
With the norms joined too a model of 17 layers has 482 nodes in place of 772; its prefill on one
core of a busy machine took 1.00 times as long, cut to a tenth 0.98 times: no change to be seen.
"""

from __future__ import annotations

import numpy as np
import onnx_ir

from tokopt.targets.onnx.matching import constant, made_by, pairs, put_in_place, sizes

ALONG_ROWS = ("Cos", "Sin", "Cast", "Identity", "Neg")


def join_rotary(model: onnx_ir.Model) -> None:
    """Rewrite, in place, every rotation of the two halves of a value's last dim."""
    for node in list(model.graph):
        if node.op_type != "Add" or node.domain != "":
            continue
        for straight, turned in pairs(node):
            found = _rotation(straight, turned)
            if found is not None:
                x, cos, sin = found
                tables = [_half(cos, x), _half(sin, x)]
                inputs = [x, *(made[-1].outputs[0] for made in tables)]
                joined = onnx_ir.node("RotaryEmbedding", inputs)
                put_in_place(model.graph, node, [*tables[0], *tables[1], joined])
                break


def _rotation(
    straight: onnx_ir.Value, turned: onnx_ir.Value
) -> tuple[onnx_ir.Value, onnx_ir.Value, onnx_ir.Value] | None:
    """Return (x, cos, sin) where the sum of the two is a rotation of x."""
    one, other = made_by(straight, "Mul"), made_by(turned, "Mul")
    if one is None or other is None:
        return None
    for x, cos in pairs(one):
        if len(sizes(x)) != 4 or None in sizes(x):
            continue
        batch, _, rows, width = sizes(x)
        if not isinstance(width, int) or width % 2:
            continue
        for half, sin in pairs(other):
            shapes = {tuple(sizes(cos)), tuple(sizes(sin))}
            fits = shapes <= {(batch, 1, rows, width), (1, 1, rows, width)}
            if (
                fits
                and x.dtype == cos.dtype == sin.dtype
                and _is_turned(half, x, width)
                and _repeats(cos)
                and _repeats(sin)
            ):
                return x, cos, sin
    return None


def _is_turned(value: onnx_ir.Value, x: onnx_ir.Value, width: int) -> bool:
    """Whether a value is the negated right half of x and then the left one."""
    both = made_by(value, "Concat")
    if both is None or len(both.inputs) != 2 or both.attributes["axis"].as_int() not in (-1, 3):
        return False
    minus, left = made_by(both.inputs[0], "Neg"), both.inputs[1]
    right = minus.inputs[0] if minus is not None else None
    return _is_part(left, x, 0, width // 2) and _is_part(right, x, width // 2, width)


def _is_part(value: onnx_ir.Value | None, x: onnx_ir.Value, start: int, end: int) -> bool:
    part = made_by(value, "Slice")
    if part is None or part.inputs[0] is not x or constant(part, 3) not in (-1, 3):
        return False
    if len(part.inputs) > 4 and constant(part, 4) != 1:
        return False
    last = constant(part, 2)
    return constant(part, 1) == start and last is not None and min(last, 2 * (end - start)) == end


def _repeats(value: onnx_ir.Value | None) -> bool:
    """Whether the left and the right half of a value's last dim are equal: shown, not guessed."""
    shape = sizes(value)
    if value is None or not shape or not isinstance(shape[-1], int) or shape[-1] % 2:
        return False
    tensor = onnx_ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return bool(np.equal(*np.split(np.asarray(tensor.numpy()), 2, axis=-1)).all())
    node = value.producer()
    if node is None or node.domain != "":
        return False
    source, kind = node.inputs[0], node.op_type
    before = sizes(source)
    if kind == "Concat":
        last = node.attributes["axis"].as_int() in (-1, len(shape) - 1)
        return last and len(node.inputs) == 2 and source is node.inputs[1]
    if kind in ALONG_ROWS:
        return _repeats(source)
    if kind == "Mul":
        return any(_repeats(one) and constant(node, i) is not None for one, i in _sides(node))
    if kind in ("Unsqueeze", "Squeeze", "Reshape", "Expand"):
        return before[-1:] == shape[-1:] and _repeats(source)
    if kind == "Transpose":
        order = node.attributes.get("perm")
        return order is not None and order.as_ints()[-1] == len(shape) - 1 and _repeats(source)
    if kind in ("Gather", "Slice"):
        axis = node.attributes["axis"].as_int() if kind == "Gather" else constant(node, 3)
        inner = axis is not None and axis % max(1, len(before)) != len(before) - 1
        return inner and before[-1:] == shape[-1:] and _repeats(source)
    return False


def _sides(node: onnx_ir.Node) -> list[tuple[onnx_ir.Value | None, int]]:
    return [(node.inputs[0], 1), (node.inputs[1], 0)]


def _half(table: onnx_ir.Value, x: onnx_ir.Value) -> list[onnx_ir.Node]:
    """Return nodes for the left half of ``[B or 1, 1, N, d]`` as ``[B, N, d / 2]``, in order."""
    batch, *_, width = sizes(x)
    assert isinstance(width, int)
    places = [_numbers(n) for n in (0, width // 2, 3, 1)]
    start, end, axis, one = (node.outputs[0] for node in places)
    left = onnx_ir.node("Slice", [table, start, end, axis])
    rows = onnx_ir.node("Squeeze", [left.outputs[0], one])
    made = [*places, left, rows]
    if sizes(table)[0] != batch:
        items = onnx_ir.node("Shape", [x], {"start": 0, "end": 1})
        shape = onnx_ir.node("Concat", [items.outputs[0], one, one], {"axis": 0})
        made += [items, shape, onnx_ir.node("Expand", [rows.outputs[0], shape.outputs[0]])]
    return made


def _numbers(number: int) -> onnx_ir.Node:
    return onnx_ir.node("Constant", [], {"value_ints": [number]})
