"""The shipped model through the MLIR target, by IREE: 2 minutes, where they are installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import tokopt
from tokopt.cli.main import main
from tokopt.ir.load import load
from tokopt.targets.calling import runner_of
from tokopt.targets.compare import compare

pytestmark = [pytest.mark.slow, pytest.mark.needs_mlir]

MODEL = Path("testsuite/models/digits-llava.pt2").resolve()


def test_the_shipped_model_passes_its_gates_and_runs_at_sizes_it_was_not_gated_with(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "digits.tokopt"
    line = ["compile", str(MODEL), "--budget", "0.1", "--target", "mlir", "-o", str(folder)]
    assert main(line) == 0
    gates = json.loads((folder / "manifest.json").read_text())["gates"]
    target = next(gate for gate in gates if gate["gate"] == "target")
    assert target["passed"] and target["max_difference"] < 1e-5
    (pixels, ids) = load(MODEL).main.example_inputs[0]
    torch.manual_seed(0)
    longer = torch.cat([ids, ids[:, -1:], ids[:, -1:]], 1).expand(2, -1)
    inputs = {"pixel_values": torch.randn(2, *pixels.shape[1:]), "input_ids": longer}
    names = ["output", "trace.0.kept", "trace.0.scores"]
    want = runner_of(load(folder / "program.pt2").main, names)(inputs)
    got = tokopt.load(folder)(inputs, trace=True)
    assert compare(want, {name: got[name] for name in names}) == []
