from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from testsuite.targets import llava, programs
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.program import Program
from tokopt.targets.calling import runner_of
from tokopt.targets.compare import compare
from tokopt.targets.lowerings.onnxruntime import OnnxRuntime
from tokopt.targets.onnx import saving
from tokopt.targets.program_file import save_program
from tokopt.targets.registry import find

pytestmark = pytest.mark.slow

CPU = find("onnxruntime-cpu")
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def vit() -> ExportedProgram:
    return programs.pruned_vit()


@pytest.fixture(scope="module")
def vit_folder(vit: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    assert CPU.lower(vit, folder) == ("model.onnx",)
    return folder


def shapes(model: onnx.ModelProto) -> dict[str, list[int | str]]:
    graph = model.graph
    return {
        value.name: [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output, *graph.value_info)
    }


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_pruned_vit_equals_torch_at_every_batch(
    vit: ExportedProgram, vit_folder: Path, batch: int
) -> None:
    inputs = {"pixel_values": torch.randn(batch, 3, 32, 32)}
    wanted = runner_of(vit)(inputs)
    got = CPU.open(vit_folder)(inputs)
    assert list(got) == ["pooled", "features", "trace.kept"]
    assert got["trace.kept"].shape == (batch, 6)
    assert compare(wanted, got) == []


def test_a_pruned_llava_equals_torch_at_other_batches_prompts_and_paddings(tmp_path: Path) -> None:
    exported = llava.pruned_llava()
    CPU.lower(exported, tmp_path, ["logits"])
    run, reference = CPU.open(tmp_path), runner_of(exported, ["logits"])
    for batch, text, padded in ((1, 2, 0), (3, 9, 0), (4, 30, 7)):
        inputs = llava.inputs(batch, text, padded)
        assert compare(reference(inputs), run(inputs)) == []
    found = shapes(onnx.load(tmp_path / "model.onnx"))
    assert found["input_ids"] == ["batch", "input_ids_dim1"]
    assert found["logits"] == ["batch", "input_ids_dim1", 200]


def test_the_kept_count_can_be_read_in_the_inputs_of_attention(vit_folder: Path) -> None:
    model = onnx.load(vit_folder / "model.onnx")
    found = shapes(model)
    keys = [found[node.input[1]] for node in model.graph.node if node.op_type == "Attention"]
    assert keys == [["batch", 4, 17, 8], ["batch", 4, 7, 8]]


def test_only_standard_operators_are_used_and_no_place_on_this_machine_is_told(
    vit_folder: Path,
) -> None:
    model = onnx.load(vit_folder / "model.onnx")
    assert {entry.domain for entry in model.opset_import} <= {"", "ai.onnx"}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions and not model.metadata_props
    del model.graph.initializer[:]  # numbers may look like anything
    text = model.SerializeToString()
    told = (b".py", b"forward", b"torch", b"/tmp", b"/root", b"/home")
    assert [word for word in told if word in text] == []


def test_selection_costs_a_narrow_sort_and_whole_row_lookups(vit_folder: Path) -> None:
    kinds = [node.op_type for node in onnx.load(vit_folder / "model.onnx").graph.node]
    assert kinds.count("TopK") == 2 and kinds.count("GatherND") == 1
    assert not {"GatherElements", "ScatterElements"} & set(kinds)


def test_plain_onnxruntime_loads_it_without_tokopt(vit_folder: Path) -> None:
    code = (
        "import sys, numpy, onnxruntime\n"
        "s = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "out = s.run(['pooled'], {'pixel_values': numpy.zeros((3, 3, 32, 32), 'float32')})\n"
        "assert out[0].shape == (3, 32) and not [m for m in sys.modules if 'tokopt' in m]\n"
    )
    subprocess.run([sys.executable, "-I", "-c", code, vit_folder / "model.onnx"], check=True)


def test_another_process_writes_the_same_bytes(
    vit: ExportedProgram, vit_folder: Path, tmp_path: Path
) -> None:
    code = (
        "import pathlib, sys\n"
        "from testsuite.targets.programs import pruned_vit\n"
        "from tokopt.ir.program import Program\n"
        "from tokopt.targets.program_file import save_program\n"
        "from tokopt.targets.registry import find\n"
        "exported, folder = pruned_vit(), pathlib.Path(sys.argv[1])\n"
        "save_program(Program.of(exported), folder)\n"
        "find('onnxruntime-cpu').lower(exported, folder)\n"
    )
    path = {"PYTHONPATH": f"{ROOT}:{ROOT / 'src'}", "PYTHONHASHSEED": "7"}
    environment = {**os.environ, **path}
    subprocess.run([sys.executable, "-c", code, tmp_path], env=environment, check=True)
    save_program(Program.of(vit), vit_folder)
    for name in ("model.onnx", "program.pt2"):
        assert (tmp_path / name).read_bytes() == (vit_folder / name).read_bytes(), name


class Through(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = x + 1
        return x, y, y, None


def test_an_output_that_is_an_input_or_another_output_is_kept_apart(tmp_path: Path) -> None:
    exported = export(Through(), (torch.randn(3),))
    CPU.lower(exported, tmp_path, ["same", "add", "again"])
    got = CPU.open(tmp_path)({"x": torch.arange(3.0)})
    assert [value.tolist() for value in got.values()] == [[0, 1, 2], [1, 2, 3], [1, 2, 3]]


class Writes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.count.add_(1)
        return x + self.count


def test_a_program_that_writes_to_a_buffer_is_refused(tmp_path: Path) -> None:
    exported = export(Writes(), (torch.randn(3),)).run_decompositions({})
    with pytest.raises(UnsupportedError, match="writes to 'count'"):
        CPU.lower(exported, tmp_path)


class Complex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvalsh(x)


def test_an_operator_without_translation_is_named(tmp_path: Path) -> None:
    exported = export(Complex(), (torch.eye(3),))
    with pytest.raises(UnsupportedError, match="eigh"):
        CPU.lower(exported, tmp_path)


def test_a_damaged_model_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InputError, match="does not load"):
        CPU.open(tmp_path)


def test_cuda_is_available_only_where_its_provider_is() -> None:
    listed = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    reason = find("onnxruntime-cuda").available()
    assert listed or (reason is not None and "CUDAExecutionProvider" in reason)


def test_a_provider_that_is_listed_but_does_not_start_is_not_available(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = OnnxRuntime("x", "NoSuchExecutionProvider")
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [target.provider])
    assert "does not start" in str(target.available())


def test_weights_above_the_limit_are_beside_the_model(
    vit: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "INSIDE_LIMIT", 10_000)
    assert CPU.lower(vit, tmp_path) == ("model.onnx", "model.onnx.data")
    sizes = [(tmp_path / name).stat().st_size for name in ("model.onnx", "model.onnx.data")]
    assert sizes[0] < 40_000 < sizes[1]
    inputs = {"pixel_values": torch.randn(1, 3, 32, 32)}
    assert compare(runner_of(vit)(inputs), CPU.open(tmp_path)(inputs)) == []


def test_large_weights_are_read_from_the_program_file_where_the_folder_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "INSIDE_LIMIT", 10_000)
    model = nn.Sequential(nn.Linear(200, 200), nn.GELU(), nn.Linear(200, 200)).eval()
    exported = export(model, (torch.randn(2, 200),))
    stored = save_program(Program.of(exported), tmp_path)
    assert CPU.lower(exported, tmp_path, None, stored) == ("model.onnx",)
    assert (tmp_path / "model.onnx").stat().st_size < 10_000
    with pytest.raises(InputError, match="does not load"):
        CPU.open(_alone(tmp_path))
    inputs = {"input": torch.randn(2, 200)}
    assert compare(runner_of(exported)(inputs), CPU.open(tmp_path)(inputs)) == []


def _alone(folder: Path) -> Path:
    """Copy ``model.onnx`` to where nothing else is."""
    (folder / "alone").mkdir()
    shutil.copy(folder / "model.onnx", folder / "alone")
    return folder / "alone"


def test_weights_that_the_program_file_holds_in_another_form_lie_beside_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Turned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("plain", torch.randn(40, 40))
            self.register_buffer("turned", torch.randn(40, 40).t())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.plain + self.turned

    monkeypatch.setattr(saving, "INSIDE_LIMIT", 10_000)
    exported = torch.export.export(Turned(), (torch.randn(40, 40),))
    stored = save_program(Program.of(exported), tmp_path)
    assert CPU.lower(exported, tmp_path, None, stored) == ("model.onnx", "model.onnx.data")
    assert (tmp_path / "model.onnx.data").stat().st_size == 40 * 40 * 4
    inputs = {"x": torch.randn(40, 40)}
    assert compare(runner_of(exported)(inputs), CPU.open(tmp_path)(inputs)) == []
