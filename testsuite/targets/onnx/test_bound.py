"""I/O binding gives what a plain run gives, of every type, and copies nothing it need not."""

from __future__ import annotations

import onnxruntime
import torch
from onnx import TensorProto, helper

from tokopt.targets.onnx.bound import bound_runner


def session() -> onnxruntime.InferenceSession:
    """``y = x @ x``, ``flags = x > 0`` per entry, ``n = ids + ids``; sizes are free."""
    numbers = helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", "n"])
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["k"])
    outputs = [
        helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", "n"]),
        helper.make_tensor_value_info("flags", TensorProto.BOOL, ["n", "n"]),
        helper.make_tensor_value_info("twice", TensorProto.INT64, ["k"]),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "x"], ["y"]),
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Greater", ["x", "zero"], ["flags"]),
        helper.make_node("Add", ["ids", "ids"], ["twice"]),
    ]
    graph = helper.make_graph(nodes, "g", [numbers, ids], outputs)
    opset = [helper.make_opsetid("", 18)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=providers)


def test_outputs_are_those_of_a_plain_run_at_every_size() -> None:
    plain = session()
    run = bound_runner(plain, torch.device("cpu"))
    for size, count in ((3, 2), (7, 0), (1, 5)):
        given = {"x": torch.randn(size, size).half().T, "ids": torch.arange(count)}
        got = run(given)
        wanted = plain.run(None, {name: value.numpy() for name, value in given.items()})
        assert list(got) == ["y", "flags", "twice"]
        assert [value.dtype for value in got.values()] == [torch.float16, torch.bool, torch.int64]
        for value, array in zip(got.values(), wanted, strict=True):
            assert torch.equal(value, torch.from_numpy(array))


def test_an_output_outlives_the_run_and_can_be_given_again() -> None:
    run = bound_runner(session(), torch.device("cpu"))
    given = torch.eye(4).half() * 2
    first = run({"x": given, "ids": torch.arange(3)})["y"]
    again = run({"x": first, "ids": torch.arange(2)})["y"]
    assert torch.equal(first, torch.eye(4).half() * 4)
    assert torch.equal(again, torch.eye(4).half() * 16)
