from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import onnxruntime

from tokopt.targets.onnx.simplify import simplify

TEXT = """<ir_version: 10, opset_import: ["" : 23]>
g (float[B, 2, 3] x) => (float[B, 6] y, float[B, 2, 3] z)
{
    one = Constant <value_float = 1.0> ()
    there = Transpose <perm = [0, 2, 1]> (x)
    back = Transpose <perm = [0, 2, 1]> (there)
    same = Mul (back, one)
    a = Exp (same)
    b = Exp (x)
    shape = Constant <value_ints = [0, 2, 3]> ()
    flat = Constant <value_ints = [0, 6]> ()
    halfway = Reshape (a, shape)
    y = Reshape (halfway, flat)
    z = Add (a, b)
}"""


def computed(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return session.run(None, {"x": x})


def test_what_cancels_goes_what_is_equal_is_computed_once_and_nothing_else_changes() -> None:
    model = onnx.parser.parse_model(TEXT)
    simpler = onnx_ir.from_proto(model)
    simplify(simpler)
    assert [node.op_type for node in simpler.graph] == ["Exp", "Reshape", "Add"]
    x = np.random.default_rng(0).normal(size=(4, 2, 3)).astype(np.float32)
    for got, wanted in zip(computed(onnx_ir.to_proto(simpler), x), computed(model, x), strict=True):
        np.testing.assert_array_equal(got, wanted)
