from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from testsuite.targets import programs
from torch.export import ExportedProgram

from tokopt.ir.program import Program
from tokopt.targets.artifact import LOG, PLAN, building, seal
from tokopt.targets.manifest import GateResult, Manifest
from tokopt.targets.program_file import save_program
from tokopt.targets.registry import find
from tokopt.targets.signature import signature_of

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> ExportedProgram:
    return programs.small()


@pytest.fixture(scope="session")
def lowered(small: ExportedProgram, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the small program with a selection trace, built once."""
    folder = tmp_path_factory.mktemp("artifacts") / "small"
    names = ["logits", "trace.kept"]
    with building(folder) as draft:
        find("onnxruntime-cpu").lower(small, draft, names)
        save_program(Program.of(small), draft)
        (draft / PLAN).write_text("[plan]\n")
        (draft / LOG).write_text("compiled\n")
        gate = GateResult("target", True, "onnxruntime-cpu with torch", 1e-7, 1e-4)
        seal(draft, Manifest("onnxruntime-cpu", signature_of(small, names), gates=(gate,)))
    return folder


@pytest.fixture
def artifact(lowered: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(lowered, tmp_path / "artifact"))


@pytest.fixture
def edited(artifact: Path) -> Callable[[str, str], Path]:
    """Replace text in the copy's manifest."""

    def edit(old: str, new: str) -> Path:
        path = artifact / "manifest.json"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))
        return artifact

    return edit
