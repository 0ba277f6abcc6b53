"""MLIR by torch-mlir, run by IREE: about 25 s."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from testsuite.targets import programs
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.program import Program
from tokopt.targets.calling import runner_of
from tokopt.targets.compare import compare
from tokopt.targets.lowerings import mlir
from tokopt.targets.program_file import save_program
from tokopt.targets.registry import find

pytestmark = pytest.mark.slow

DIALECTS = {"mlir": "linalg.", "mlir-stablehlo": "stablehlo.", "mlir-tosa": "tosa."}

ALONE = """
import json, sys
sys.path[:] = json.loads(sys.argv[2])
import iree.compiler, iree.runtime, numpy as np
folder = sys.argv[1]
code = iree.compiler.compile_file(
    folder + "/model.mlir", input_type="none", target_backends=["llvm-cpu"],
    extra_args=["--iree-llvmcpu-target-cpu=host"])
context = iree.runtime.SystemContext(config=iree.runtime.Config("local-sync"))
context.add_vm_module(iree.runtime.VmModule.copy_buffer(context.instance, code))
given = {"x": np.ones((2, 4), np.float32), "mask": np.ones(2, bool)}
arguments = [
    given[a["name"]] if a["name"] else
    np.array(np.memmap(folder + "/" + a["file"], a["dtype"], "r", a["offset"], tuple(a["shape"])))
    for a in json.load(open(folder + "/model.arguments.json"))["arguments"]]
out = context.modules.module.main(*arguments)
assert not [m for m in sys.modules if "tokopt" in m or m == "torch"]
print(json.dumps(np.asarray(out[0]).tolist()))
"""


class WithBuffer(torch.nn.Module):
    """Buffers that modules do not save, which torch-mlir's own entry does not find; one scalar."""

    def __init__(self) -> None:
        super().__init__()
        self.small = programs.Small()
        self.register_buffer("scale", torch.full([4], 0.5), persistent=False)
        self.register_buffer("shift", torch.tensor(0.25), persistent=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.small(x * self.scale + self.shift, mask)


@pytest.mark.needs_mlir
@pytest.mark.parametrize("name", DIALECTS)
def test_each_dialect_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = {"x": torch.randn(3, 4), "mask": torch.tensor([True, False, True])}
    fixed = torch.export.export(WithBuffer().eval(), (), given).run_decompositions({})
    assert fixed.graph_signature.non_persistent_buffers
    find(name).lower(fixed, tmp_path, ["logits", "kept"])
    text = (tmp_path / "model.mlir").read_text()
    used = {other for other in DIALECTS.values() if f'"{other}' in text}
    assert used == {DIALECTS[name]} and "dense_resource" not in text
    assert (
        compare(runner_of(fixed, ["logits", "kept"])(given), find(name).open(tmp_path)(given)) == []
    )


@pytest.mark.needs_mlir
def test_a_free_batch_runs_and_the_folder_runs_without_tokopt_or_torch(
    small: ExportedProgram, tmp_path: Path
) -> None:
    stored = save_program(Program.of(small), tmp_path)
    files = find("mlir").lower(small, tmp_path, ["logits", "kept"], stored)
    assert files == ("model.mlir", "model.arguments.json", "signature.json")
    run, reference = find("mlir").open(tmp_path), runner_of(small, ["logits", "kept"])
    for batch in (1, 5):
        inputs = {"x": torch.randn(4, batch).T, "mask": torch.arange(batch) > 1}
        assert compare(reference(inputs), run(inputs)) == []
    called = [sys.executable, "-I", "-c", ALONE, str(tmp_path), json.dumps(sys.path)]
    done = subprocess.run(called, check=True, capture_output=True, text=True)
    ones = {"x": torch.ones(2, 4), "mask": torch.ones(2, dtype=torch.bool)}
    assert torch.allclose(torch.tensor(json.loads(done.stdout)), reference(ones)["logits"])


@pytest.mark.needs_mlir
def test_the_same_program_gives_the_same_bytes(small: ExportedProgram, tmp_path: Path) -> None:
    texts = []
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        files = find("mlir").lower(small, folder)
        texts.append([(folder / name).read_bytes() for name in files])
    assert texts[0] == texts[1]


@pytest.mark.needs_mlir
def test_what_is_not_imported_is_named_with_its_node_and_the_user_s_line(tmp_path: Path) -> None:
    class Singular(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.linalg.svdvals(x)

    exported = torch.export.export(Singular(), (torch.randn(3, 3),))
    with pytest.raises(UnsupportedError, match=r"does not take aten\._linalg_svd") as caught:
        find("mlir").lower(exported, tmp_path)
    where = str(caught.value.where)
    assert "node _linalg_svd" in where and "test_mlir.py" in where
    assert list(tmp_path.iterdir()) == []


@pytest.mark.needs_mlir
def test_damaged_text_is_an_input_error(small: ExportedProgram, tmp_path: Path) -> None:
    find("mlir").lower(small, tmp_path)
    (tmp_path / "model.mlir").write_text("module { oops }")
    with pytest.raises(InputError, match="IREE does not compile"):
        find("mlir").open(tmp_path)


def test_without_torch_mlir_the_target_says_how_to_install_it(
    small: ExportedProgram, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlir, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedError, match=r"torch-mlir.*pip install 'tokopt\[mlir\]'"):
        find("mlir").lower(small, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_bfloat16_is_refused_by_the_name_of_its_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlir, "find_spec", lambda name: True)
    exported = torch.export.export(torch.nn.ReLU(), (torch.ones(2, dtype=torch.bfloat16),))
    with pytest.raises(UnsupportedError, match="bfloat16") as caught:
        find("mlir").lower(exported, tmp_path)
    assert caught.value.where == "input"
