from __future__ import annotations

import io
import zipfile
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from tokopt.ir.program import Program
from tokopt.ir.torch_writing import writing
from tokopt.targets.program_file import save_program


def test_a_saved_program_loads_and_computes_the_same(
    small: ExportedProgram, tmp_path: Path
) -> None:
    path = tmp_path / save_program(Program.of(small), tmp_path).file
    x, mask = torch.randn(3, 4), torch.ones(3, dtype=torch.bool)
    again = torch.export.load(path)
    got, wanted = (program.module()(x=x, mask=mask) for program in (again, small))
    assert all(torch.equal(one, other) for one, other in zip(got, wanted, strict=True))


def test_stack_traces_and_example_inputs_stay_out_of_the_file_and_in_the_program(
    small: ExportedProgram, tmp_path: Path
) -> None:
    before = [dict(node.meta) for node in small.graph.nodes]
    path = tmp_path / save_program(Program.of(small), tmp_path).file
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert not [n for n in names if "sample_inputs" in n and archive.read(n)]
        text = b"".join(archive.read(n) for n in names if n.endswith(".json"))
    assert b".py" not in text and b"graph_id" not in text and b"nn_module_stack" in text
    assert [dict(node.meta) for node in small.graph.nodes] == before
    assert small.example_inputs is not None


def test_several_programs_share_one_file(small: ExportedProgram, tmp_path: Path) -> None:
    save_program(Program({"prefill": small, "decode": small}), tmp_path)
    with zipfile.ZipFile(tmp_path / "program.pt2") as archive:
        models = {Path(name).name for name in archive.namelist() if "/models/" in name}
    assert models == {"prefill.json", "decode.json"}


def test_the_first_failed_write_is_raised_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.BytesIO):
        def write(self, data: object) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "open", lambda self, mode: Full())
    with pytest.raises(OSError, match="No space"), writing(tmp_path / "file") as file:
        assert file.write(b"12345") == 5
        assert file.write(b"678") == 3
