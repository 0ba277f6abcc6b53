"""Large models lie outside of their file, but for what onnx's checker must read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tokopt.targets.onnx import saving

PIECES = 200


def model() -> onnx_ir.Model:
    """A table is added to ``[200, 400]`` numbers, which are then split into 200 rows of one."""
    value = helper.make_tensor_value_info
    table = np.arange(PIECES * 400, dtype=np.float32).reshape(PIECES, 400)
    stored = [
        numpy_helper.from_array(table, "table"),
        numpy_helper.from_array(np.ones(PIECES, np.int64), "sizes"),
    ]
    pieces = [f"piece_{i}" for i in range(PIECES)]
    nodes = [
        helper.make_node("Add", ["x", "table"], ["sum"]),
        helper.make_node("Split", ["sum", "sizes"], pieces, axis=0),
    ]
    outputs = [value(pieces[i], TensorProto.FLOAT, [1, 400]) for i in (0, -1)]
    inputs = [value("x", TensorProto.FLOAT, [PIECES, 400])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, stored)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return onnx_ir.serde.deserialize_model(made)


def test_sizes_stay_in_the_file_and_weights_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "INSIDE_LIMIT", 0)
    assert saving.save(model(), tmp_path) == ("model.onnx", "model.onnx.data")
    written = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    outside = [t.name for t in written.graph.initializer if t.data_location == TensorProto.EXTERNAL]
    assert outside == ["table"] and PIECES * 8 > saving.SMALL
    session = onnxruntime.InferenceSession(
        tmp_path / "model.onnx", providers=["CPUExecutionProvider"]
    )
    first, last = session.run(None, {"x": np.zeros((PIECES, 400), np.float32)})
    assert first[0, 3] == 3 and last[0, 0] == (PIECES - 1) * 400
