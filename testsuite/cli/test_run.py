from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.cli.run import describe

Written = Callable[..., str]
Capture = pytest.CaptureFixture[str]


def test_run_shows_and_writes_what_the_loaded_artifact_returns(
    built: Path, tmp_path: Path, written: Written, pictures: Tensor, capfd: Capture
) -> None:
    file = tmp_path / "outputs.safetensors"
    assert main(["run", str(built), "--inputs", written(images=pictures), "-o", str(file)]) == 0
    wanted = tokopt.load(built)(images=pictures)["output"]
    assert load_file(file).keys() == {"output"} and torch.equal(load_file(file)["output"], wanted)
    (row,) = [line for line in capfd.readouterr().out.splitlines() if "float32" in line]
    for cell in ("output", "[5, 10]", *(f"{f(wanted):.5g}" for f in (torch.min, torch.max))):
        assert cell in row


def test_with_trace_the_kept_rows_and_their_scores_are_outputs_too(
    built: Path, tmp_path: Path, written: Written, pictures: Tensor, capfd: Capture
) -> None:
    file = str(tmp_path / "outputs.safetensors")
    line = ["run", str(built), "--inputs", written(images=pictures), "--json", "-o", file]
    assert main([*line, "--trace"]) == 0
    said = json.loads(capfd.readouterr().out)
    names = ["output", "trace.0.kept", "trace.0.scores"]
    assert [row["name"] for row in said["outputs"]] == names == sorted(load_file(file))
    assert (said["outputs"][1]["dtype"], said["outputs"][1]["shape"]) == ("int64", [5, 19])
    assert (said["target"], said["written"]) == ("eager", file)


def test_without_inputs_it_names_those_that_are_needed(built: Path, capfd: Capture) -> None:
    assert main(["run", str(built)]) == 2
    assert "images: float32 [batch, 3, 48, 48]" in capfd.readouterr().err


def test_a_failed_artifact_is_refused(
    failed: Path, written: Written, pictures: Tensor, capfd: Capture
) -> None:
    assert main(["run", str(failed), "--inputs", written(images=pictures)]) == 1
    assert "failed verification" in capfd.readouterr().err


def test_outputs_that_cannot_be_written_leave_nothing(
    built: Path, tmp_path: Path, written: Written, pictures: Tensor, capfd: Capture
) -> None:
    (tmp_path / "taken").mkdir()
    inputs = written(images=pictures)
    for place in (tmp_path / "taken", tmp_path / "no" / "where"):
        assert main(["run", str(built), "--inputs", inputs, "-o", str(place)]) == 2
        assert "the outputs cannot be written" in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["inputs.safetensors", "taken"]


def test_numbers_of_an_output_that_is_not_finite_are_none() -> None:
    for value in (torch.tensor([1.0, torch.inf]), torch.tensor([torch.nan]), torch.zeros(0)):
        said = describe("x", value)
        assert [said[key] for key in ("min", "mean", "max")] == [None] * 3
    said = describe("x", torch.tensor([True, False]))
    assert [said[key] for key in ("dtype", "min", "mean", "max")] == ["bool", 0.0, 0.5, 1.0]
