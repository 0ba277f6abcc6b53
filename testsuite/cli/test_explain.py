"""``tokopt explain``: its numbers are those of the manifest and of both programs' own runs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tokopt
from tokopt.cli.inputs import example_inputs
from tokopt.cli.main import main
from tokopt.ir.load import load

Capture = pytest.CaptureFixture[str]


def test_what_a_stage_loses_is_how_far_the_artifact_answers_from_the_original(
    archive: Path, built: Path, capsys: Capture
) -> None:
    assert main(["explain", str(built), "--against", str(archive), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["budgets"]
    original = load(archive).main
    given = example_inputs(original)
    with torch.no_grad():
        wanted = original.module()(*given.values()).numpy().astype(np.float64)
    (got,) = (v.numpy().astype(np.float64) for v in tokopt.load(built)(**given).values())
    cosine = (wanted * got).sum(-1) / np.linalg.norm(wanted, axis=-1) / np.linalg.norm(got, axis=-1)
    (stage,) = told["stages"]
    assert told["distance"] == stage["distance_so_far"] and told["samples"] == len(wanted)
    assert abs(stage["distance_so_far"]["cosine"] - (1 - cosine).mean()) < 1e-6
    assert told["distance"]["cosine"] > 1e-6, "a plan that loses nothing would show nothing"
    assert told["flow"]["vision"] == pytest.approx([stage["flow_so_far"]])
    assert 0 < stage["flow_so_far"] < 1


def test_what_a_stage_costs_is_what_the_manifest_says(built: Path, capsys: Capture) -> None:
    assert main(["explain", str(built), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["budgets"]
    recorded = json.loads((built / "manifest.json").read_text())["budget"]
    (stage,), (cost,) = told["stages"], recorded["selector"]
    assert (stage["site"], stage["method"], stage["keep"]) == ("vision:0", "stride", 18)
    assert (stage["flops"], stage["bytes"]) == (cost["flops"], cost["bytes"])
    assert told["layers"] == {"vision:0": 0.5} and told["spent"]["tokens"] == 0.5
    assert told["flow"] is None and stage["distance_so_far"] is None and told["search"] is None


def test_a_person_gets_the_stages_and_the_layers(
    archive: Path, built: Path, capsys: Capture
) -> None:
    assert main(["explain", str(built), "--against", str(archive)]) == 0
    shown = capsys.readouterr().out
    assert "stride at vision:0" in shown and "no plans were judged" in shown
    (layer,) = (line for line in shown.splitlines() if line.startswith("vision:0 "))
    assert "50.0%" in layer


def test_what_cannot_be_explained_is_said(artifact: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main(["explain", str(tmp_path / "nothing")]) == 2
    assert main(["explain", str(artifact), "--inputs", "x.safetensors"]) == 2
    other = Path("testsuite/models/digits-llava.pt2").resolve()
    assert main(["explain", str(artifact), "--against", str(other)]) == 2
    said = capsys.readouterr().err
    assert "not a tokopt artifact" in said and "--against" in said and "Traceback" not in said
    assert "not made from this archive" in said
