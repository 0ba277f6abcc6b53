from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokopt.cli.main import main


def test_an_artifact_shows_what_its_runtime_runs_as_one_operator(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "lowered")
    line = ["compile", str(archive), "--budget", "0.5", "--method", "stride"]
    assert main([*line, "--target", "onnxruntime-cpu", "-o", folder]) == 0
    capsys.readouterr()
    assert main(["inspect", folder, "--target", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["target"] == "onnxruntime-cpu"
    regions = described["models"]["model.onnx"]
    attention = [one for one in regions if one["kind"] == "attention"]
    assert len(attention) == 1 and not attention[0]["fused"] and attention[0]["why"]
    assert main(["inspect", folder, "--target"]) == 0
    shown = capsys.readouterr().out
    assert "model.onnx as onnxruntime-cpu runs it" in shown and "LayerNormalization" in shown


def test_what_has_no_lowered_model_is_refused(
    archive: Path, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(archive), "--target"]) == 2
    assert "not a tokopt artifact" in capsys.readouterr().err
    assert main(["inspect", str(built), "--target"]) == 3
    assert "what eager runs is not listed" in capsys.readouterr().err
    assert main(["inspect", str(built), "--target", "--metrics"]) == 2
