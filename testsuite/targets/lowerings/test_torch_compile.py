"""torch.compile runs the saved program, at every size it was exported for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from tokopt.ir.program import Program
from tokopt.targets.calling import runner_of
from tokopt.targets.compare import compare
from tokopt.targets.program_file import save_program
from tokopt.targets.registry import find

TARGET = find("torch-compile")
REASON = TARGET.available()


@pytest.mark.exhaustive
@pytest.mark.needs_cxx
@pytest.mark.skipif(REASON is not None, reason=str(REASON))
def test_what_inductor_makes_of_the_saved_program_computes_what_it_did(
    small: ExportedProgram, tmp_path: Path
) -> None:
    save_program(Program.of(small), tmp_path)
    names = ["logits", "trace.kept"]
    assert TARGET.lower(small, tmp_path, names) == ("signature.json",)
    run, reference = TARGET.open(tmp_path), runner_of(small, names)
    for batch in (2, 5):
        inputs = {"x": torch.randn(batch, 4), "mask": torch.ones(batch, dtype=torch.bool)}
        assert compare(reference(inputs), run(inputs)) == []
