"""What is asked for so that a run is one CUDA graph, and why not; replayed here on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from torch.export import Dim, export
from torch.nn.functional import scaled_dot_product_attention

from tokopt.targets.lowerings import onnxruntime as lowering
from tokopt.targets.lowerings.onnxruntime import CPU, CUDA, OnnxRuntime
from tokopt.targets.onnx.captured import barrier, captured_runner
from tokopt.targets.registry import find

Size = int | str | None


def model(sizes: Sequence[Size], nodes: Sequence[Any] = ()) -> onnx.ModelProto:
    """``y = x + x``, ``positive = x > 0``, ``half = h * h`` over sizes; further nodes."""
    ends = [("x", TensorProto.FLOAT), ("h", TensorProto.FLOAT16), ("y", TensorProto.FLOAT),
            ("half", TensorProto.FLOAT16), ("positive", TensorProto.BOOL)]  # fmt: skip
    x, h, *outputs = (helper.make_tensor_value_info(*end, list(sizes)) for end in ends)
    made = [
        helper.make_node("Add", ["x", "x"], ["y"]),
        helper.make_node("Mul", ["h", "h"], ["half"]),
        helper.make_node("Sub", ["x", "x"], ["zero"]),
        helper.make_node("Greater", ["x", "zero"], ["positive"]),
    ]
    graph = helper.make_graph([*made, *nodes], "g", [x, h], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def branch() -> Any:
    sides = []
    for name, number in (("a", 0.0), ("b", 1.0)):
        value = helper.make_tensor("v", TensorProto.FLOAT, [1], [number])
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
        node = helper.make_node("Constant", [], [name], value=value)
        sides.append(helper.make_graph([node], name, [], [made]))
    return helper.make_node("If", ["all"], ["c"], "fork", then_branch=sides[0],
                            else_branch=sides[1])  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "nodes", "why"),
    [
        ([2, 3], [], None),
        (["n", 3], [], "the size n of x is free"),
        ([2, None], [], "the size None of x is free"),
        ([2, 3], [branch()], r"fork is a loop or a branch \(If\)"),
    ],
)
def test_free_sizes_and_branches_are_what_keeps_a_run_from_being_one_graph(
    sizes: Sequence[Size], nodes: Sequence[Any], why: str | None, tmp_path: Path
) -> None:
    onnx.save(model(sizes, nodes), tmp_path / "m.onnx")
    found = barrier(tmp_path / "m.onnx")
    assert (found is None) == (why is None)
    assert why is None or why.replace("\\", "") == found


class Watched:
    """A session that says where each of its runs read and wrote."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self.session, self.bindings, self.runs = session, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def io_binding(self) -> Any:
        self.bindings += 1
        return self.session.io_binding()

    def run_with_iobinding(self, binding: Any) -> None:
        self.runs += 1
        self.session.run_with_iobinding(binding)


def test_every_run_is_at_the_addresses_of_the_first_and_its_outputs_outlive_the_next() -> None:
    plain = onnxruntime.InferenceSession(model([2, 3]).SerializeToString(), providers=[CPU])
    watched: Any = Watched(plain)
    run = captured_runner(watched, torch.device("cpu"))
    given = [{"x": torch.randn(2, 3), "h": torch.randn(3, 2).half().T} for _ in range(3)]
    found = [run(one) for one in given]
    assert (watched.bindings, watched.runs) == (1, 5)  # two of them on zeros
    for one, got in zip(given, found, strict=True):
        wanted = plain.run(None, {name: value.numpy() for name, value in one.items()})
        for value, array in zip(got.values(), wanted, strict=True):
            assert torch.equal(value, torch.from_numpy(array))
    with pytest.raises(ValueError, match=r"x is \[3, 3\], not \[2, 3\]"):
        run({"x": torch.randn(3, 3), "h": torch.randn(2, 3).half()})


@pytest.mark.parametrize("refused", ["", "start", "run"])
def test_the_cuda_provider_is_asked_for_a_graph_and_what_it_says_is_told(
    refused: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx.save(model([2, 3]), tmp_path / "model.onnx")
    onnx.save(model([2, "n"]), tmp_path / "model-decode.onnx")
    asked = []

    def start(path: str, options: Any, providers: Any, provider_options: Any) -> str:
        asked.append((Path(path).name, dict(zip(providers, provider_options, strict=True))))
        if refused == "start" and provider_options[0]:
            raise RuntimeError("not all nodes are on CUDA")
        return Path(path).name

    def captured(session: str, device: torch.device) -> str:
        assert (session, device.type) == ("model.onnx", "cuda")
        if refused == "run":
            raise RuntimeError("not all nodes are on CUDA")
        return "captured"

    monkeypatch.setattr(onnxruntime, "InferenceSession", start)
    monkeypatch.setattr(lowering, "captured_runner", captured)
    monkeypatch.setattr(lowering, "bound_runner", lambda session, device: "bound")
    assert OnnxRuntime("cuda", CUDA)._opened(tmp_path / "model.onnx")[0] == (
        "bound" if refused else "captured"
    )
    asked.clear()
    found = OnnxRuntime("cuda", CUDA).choices(tmp_path)
    graph = "no: ONNX Runtime refuses: not all nodes are on CUDA"
    assert found["model.onnx"] == {
        "provider": CUDA, "cuda_graph": graph if refused else "captured at the first run",
    }  # fmt: skip
    assert found["model-decode.onnx"]["cuda_graph"] == "no: the size n of x is free"
    wish = ("model.onnx", {CUDA: {"enable_cuda_graph": "1"}, CPU: {}})
    without = [(name, {CUDA: {}, CPU: {}}) for name in ("model-decode.onnx", "model.onnx")]
    assert asked == [without[0], wish, *([without[1]] if refused else [])]


class Step(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return scaled_dot_product_attention(x, x, x)


@pytest.mark.parametrize("free", [False, True])
def test_what_is_lowered_of_constant_sizes_has_no_barrier(free: bool, tmp_path: Path) -> None:
    shapes = {"x": {0: Dim("batch", min=1, max=4)}} if free else None
    exported = export(Step(), (torch.randn(2, 2, 5, 8),), dynamic_shapes=shapes)
    target = find("onnxruntime-cpu")
    target.lower(exported, tmp_path)
    assert (barrier(tmp_path / "model.onnx") is None) == (not free)
    assert target.choices(tmp_path) == {"model.onnx": {"provider": CPU}}
