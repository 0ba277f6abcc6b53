"""Four families through ONNX Runtime: same rows kept, same outputs, fewer rows in the file."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

import onnx
import pytest
import torch
from testsuite.exhaustive import thinned
from testsuite.passes.families import Lowered, every_input, lowered
from testsuite.zoo import llava

from tokopt.cli.target_gate import against_target
from tokopt.passes.macs import count_macs, predict_macs

pytestmark = pytest.mark.slow

PLANS = {
    "llava": "vision:1 flowcut 24, vision:end flowcut 18, decoder:2 fastv 4",
    "llava_explicit": "vision:1 vtc_cls 18, decoder:2 fastv 4",
    "llava_dynamic": "vision:1 flowcut 18, decoder:2 fastv 4",
    "qwen": "vision:3 stride 48, decoder:2 fastv 2",
    "dino": "vision:2 flowcut 18, vision:3 vtc_cls 4",
    "handvit": "vision:2 vtc_cls 18, vision:3 flowcut 4",
}
ROWS = {
    # query and key rows of every attention in data order: 36 patches behind a class token,
    # 9 text tokens, 4 registers; towers without a merge to feed run to their last layer
    "llava": [37, 25, 25, 27, 27, 13, 13],
    "qwen": [16] * 3 + [48, 22, 22, 12, 12],
    "dino": [41, 41, 23, 9],
}


def model_of(name: str) -> onnx.ModelProto:
    """Return the saved file with shapes inferred by onnx alone: none are read from the file."""
    model = onnx.load(lowered(name, PLANS[name]).folder / "model.onnx")
    del model.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(model)


def shapes_of(model: onnx.ModelProto) -> dict[str, list[int]]:
    graph = model.graph
    found = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.value_info, *graph.input, *graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            found[value.name] = [d.dim_value for d in dims]
    return found


def macs_of(model: onnx.ModelProto) -> int:
    """Count the multiply-accumulates of a file from its inferred shapes."""
    shapes = shapes_of(model)
    return sum(macs for node in model.graph.node for macs in _macs(node, shapes))


def _macs(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> Iterator[int]:
    if node.op_type == "MatMul":
        yield prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]
    elif node.op_type == "Gemm":
        flipped = any(a.name == "transA" and a.i for a in node.attribute)
        yield prod(shapes[node.output[0]]) * shapes[node.input[0]][0 if flipped else -1]
    elif node.op_type in ("Conv", "ConvTranspose"):
        yield prod(shapes[node.output[0]]) * prod(shapes[node.input[1]][1:])
    elif node.op_type == "Attention":
        (batch, heads, queries, width), keys = (shapes[name] for name in node.input[:2])
        yield batch * heads * queries * keys[2] * (width + shapes[node.input[2]][3])


def kept_sets(done: Lowered, inputs: Mapping[str, torch.Tensor]) -> list[list[tuple[int, ...]]]:
    """Return the rows kept, per stage and item."""
    outputs = done.runner(inputs)
    stages = range(len(done.checked.plan.stages))
    return [[tuple(rows.tolist()) for rows in outputs[f"trace.{i}.kept"]] for i in stages]


@pytest.mark.parametrize("name", thinned(PLANS, 2))
def test_the_file_keeps_the_rows_and_computes_the_outputs_of_the_oracle(name: str) -> None:
    done = lowered(name, PLANS[name])
    inputs = every_input(done.family)
    for given in inputs[2:4] if name == "llava_dynamic" else inputs[:1]:  # batch 1, batch 3
        verdicts = list(
            against_target(done.target, done.folder, done.checked, done.program, given, done.names)
        )
        assert [v for v in verdicts if not v.passed] == []
        assert all(v.max_difference is None or v.max_difference <= 1e-4 for v in verdicts)


def test_one_dynamic_file_serves_three_items_with_other_positions_rows_and_lengths() -> None:
    done = lowered("llava_dynamic", PLANS["llava_dynamic"])
    seen = []
    for given in every_input(done.family):
        batch, length = given["input_ids"].shape
        seen.append((batch, length))
        starts = (given["input_ids"] == llava.IMAGE_TOKEN).int().argmax(1).tolist()
        assert len(set(starts)) == batch
        for stage in kept_sets(done, given):
            assert len(set(stage)) == batch, "every item keeps rows of its own"
    assert 3 in {batch for batch, _ in seen} and len({length for _, length in seen}) >= 2


@pytest.mark.parametrize("name", ROWS)
def test_attention_behind_a_stage_has_the_kept_rows_in_the_file(name: str) -> None:
    model = model_of(name)
    shapes = shapes_of(model)
    nodes = [node for node in model.graph.node if node.op_type == "Attention"]
    found = [[shapes[name][2] for name in node.input[:3]] for node in nodes]
    assert found == [[rows] * 3 for rows in ROWS[name]]


@pytest.mark.parametrize("name", sorted(set(PLANS) - {"llava_dynamic"}))
def test_the_file_multiplies_as_much_as_the_plan_predicts(name: str) -> None:
    done = lowered(name, PLANS[name])
    given = every_input(done.family)[0]
    predicted = predict_macs(done.checked.facts, done.checked.plan, given)
    whole = count_macs(done.checked.facts.exported, given)
    assert predicted < 0.85 * whole, "a plan that saves nothing shows nothing"
    assert macs_of(model_of(name)) == pytest.approx(predicted, rel=0.02)
    assert count_macs(done.program, given) == pytest.approx(predicted, rel=0.02)
