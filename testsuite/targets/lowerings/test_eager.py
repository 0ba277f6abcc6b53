from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from tokopt.ir.errors import InputError
from tokopt.ir.program import Program
from tokopt.targets.calling import runner_of
from tokopt.targets.compare import Tolerance, compare
from tokopt.targets.program_file import save_program
from tokopt.targets.registry import find

EAGER = find("eager")


def test_the_saved_program_runs_as_the_program_did(small: ExportedProgram, tmp_path: Path) -> None:
    save_program(Program.of(small), tmp_path)
    names = ["logits", "trace.kept"]
    assert EAGER.lower(small, tmp_path, names) == ("signature.json",)
    run, reference = EAGER.open(tmp_path), runner_of(small, names)
    for batch in (1, 5):
        inputs = {"x": torch.randn(batch, 4), "mask": torch.ones(batch, dtype=torch.bool)}
        assert compare(reference(inputs), run(inputs), Tolerance(0, 0)) == []


def test_a_damaged_program_is_an_input_error(small: ExportedProgram, tmp_path: Path) -> None:
    EAGER.lower(small, tmp_path)
    (tmp_path / "program.pt2").write_bytes(b"PK\3\4 not an archive")
    with pytest.raises(InputError):
        EAGER.open(tmp_path)
