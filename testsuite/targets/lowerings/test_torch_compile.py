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


def test_what_inductor_captures_is_told_by_the_sizes(
    small: ExportedProgram, tmp_path: Path
) -> None:
    TARGET.lower(small, tmp_path, ["logits", "trace.kept"])
    TARGET.lower(constant(), tmp_path, part="-0.5")
    assert TARGET.choices(tmp_path)["signature.json"] == {"mode": "max-autotune"}
    found = find("torch-compile-cuda").choices(tmp_path)
    assert found["signature.json"]["cuda_graph"].startswith("one for each size of ")
    assert found["signature-0.5.json"]["cuda_graph"] == "one, captured by Inductor"


def constant() -> ExportedProgram:
    return torch.export.export(torch.nn.Linear(4, 4), (torch.randn(2, 4),))
