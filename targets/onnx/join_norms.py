"""Root-mean-square norms, written out in six operators, become ``RMSNormalization`` (opset 23).

Measured on ONNX Runtime 1.32 CPU, 640 rows of 512: 0.30 to 0.16 ms, which is too little to be seen
in a whole prefill there (``join_rotary.py``).  Sound where the scale is one
number per column of the normalised axis, and where what is normalised is cast back to the input's
own type, as the operator does, or is of it all along; everything else stays written out.

The runtime's norms with the skip connection in them are not used, as they are slower (least of 60
on one thread, 122 rows of 512, 1.31 alike): ``SkipLayerNormalization`` 0.317 ms, ``Add`` and
``LayerNormalization`` 0.048; ``SkipSimplifiedLayerNormalization`` 0.075 ms, apart 0.034.
"""

from __future__ import annotations

import onnx_ir

from tokopt.targets.onnx.matching import constant, made_by, pairs, put_in_place, sizes

STASHES = (onnx_ir.DataType.FLOAT, onnx_ir.DataType.DOUBLE)
"""The types in which ONNX Runtime computes a norm."""


def join_norms(model: onnx_ir.Model) -> None:
    """Rewrite, in place, every root-mean-square norm over the last dim with a scale."""
    for node in list(model.graph):
        if node.op_type != "Mul" or node.domain != "":
            continue
        for normalised, scale in pairs(node):
            joined = _joined(normalised, scale)
            if joined is not None:
                put_in_place(model.graph, node, [joined])
                break


def _joined(normalised: onnx_ir.Value, scale: onnx_ir.Value) -> onnx_ir.Node | None:
    cast = made_by(normalised, "Cast")
    product = made_by(cast.inputs[0] if cast is not None else normalised, "Mul")
    for x, factor in pairs(product) if product is not None else ():
        epsilon = _epsilon(x, factor)
        if epsilon is None or x.dtype not in STASHES or sizes(scale) != sizes(x)[-1:]:
            continue
        wide = made_by(x, "Cast")
        source = x if cast is None or wide is None else wide.inputs[0]
        if source is None or not source.dtype == normalised.dtype == scale.dtype:
            continue
        assert x.dtype is not None
        return onnx_ir.node(
            "RMSNormalization",
            [source, scale],
            attributes={"axis": -1, "epsilon": epsilon, "stash_type": int(x.dtype)},
        )
    return None


def _epsilon(x: onnx_ir.Value, factor: onnx_ir.Value) -> float | None:
    """Return e where ``factor`` is 1 / sqrt(mean(x², last dim) + e), else None."""
    inverse = made_by(factor, "Reciprocal")
    root = made_by(inverse.inputs[0], "Sqrt") if inverse is not None else None
    total = made_by(root.inputs[0], "Add") if root is not None else None
    if total is None:
        return None
    for place in (0, 1):
        mean, epsilon = made_by(total.inputs[1 - place], "ReduceMean"), constant(total, place)
        if mean is None or epsilon is None or constant(mean, 1) not in (-1, len(sizes(x)) - 1):
            continue
        keeps = mean.attributes.get("keepdims")
        if (keeps is None or keeps.as_int() == 1) and _is_square(mean.inputs[0], x):
            return epsilon
    return None


def _is_square(value: onnx_ir.Value | None, x: onnx_ir.Value) -> bool:
    power, product = made_by(value, "Pow"), made_by(value, "Mul")
    if power is not None:
        return power.inputs[0] is x and constant(power, 1) == 2
    return product is not None and all(one is x for one in product.inputs)
