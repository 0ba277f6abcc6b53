from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from onnxruntime.capi.onnxruntime_inference_collection import Session

from tokopt.cli.main import main


def test_an_artifact_shows_what_its_runtime_runs_as_one_operator(
    archive: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = str(tmp_path / "lowered")
    line = ["compile", str(archive), "--budget", "0.5", "--method", "stride"]
    assert main([*line, "--target", "onnxruntime-cpu", "-o", folder]) == 0
    capsys.readouterr()
    assert main(["inspect", folder, "--target", "--json"]) == 0
    described = json.loads(capsys.readouterr().out)
    assert described["target"] == "onnxruntime-cpu"
    regions = described["models"]["model.onnx"]["regions"]
    placed = described["models"]["model.onnx"]["placed"]
    assert list(placed) == ["CPUExecutionProvider"] and placed["CPUExecutionProvider"]["Softmax"]
    assert described["choices"] == {"model.onnx": {"provider": "CPUExecutionProvider"}}
    attention = [one for one in regions if one["kind"] == "attention"]
    assert len(attention) == 1 and not attention[0]["fused"] and attention[0]["why"]
    assert main(["inspect", folder, "--target"]) == 0
    shown = capsys.readouterr().out
    assert "model.onnx as onnxruntime-cpu runs it" in shown and "LayerNormalization" in shown
    assert "CPUExecutionProvider" in shown
    monkeypatch.delattr(Session, "get_provider_graph_assignment_info")
    assert main(["inspect", folder, "--target"]) == 0
    assert "not told by this onnxruntime" in capsys.readouterr().out


def test_a_package_shows_what_inductor_calls_and_made(
    artifact: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As torch 2.13 writes them; a package made here is read in test_aotinductor."""
    manifest = json.loads((artifact / "manifest.json").read_text())
    manifest["target"] = "aotinductor"
    manifest["files"]["model.aoti.pt2"] = "0"
    (artifact / "manifest.json").write_text(json.dumps(manifest))
    assert main(["inspect", str(artifact), "--target"]) == 2
    assert "cannot read the package" in capsys.readouterr().err
    with zipfile.ZipFile(artifact / "model.aoti.pt2", "w") as package:
        package.writestr("data/other.cpp", "aoti_torch_cpu_topk(")
    assert main(["inspect", str(artifact), "--target"]) == 2
    assert "does not hold its source" in capsys.readouterr().err
    with zipfile.ZipFile(artifact / "model.aoti.pt2", "w") as package:
        package.writestr(
            "data/x.wrapper.cpp",
            "extern void cpp_fused_add_0(); aoti_torch_empty_strided(1); cpp_fused_add_0();"
            "aoti_torch_cpu_bmm_out(a); aoti_torch_cpu_bmm_out(b); aoti_torch_cpu_topk(c);",
        )
    assert main(["inspect", str(artifact), "--target", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["packages"]["model.aoti.pt2"]
    assert found == {"library": {"bmm_out": 2, "topk": 1}, "kernels": ["add_0"]}
    assert main(["inspect", str(artifact), "--target"]) == 0
    assert "bmm_out" in capsys.readouterr().out


def test_what_has_no_lowered_model_is_refused(
    archive: Path, built: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(archive), "--target"]) == 2
    assert "not a tokopt artifact" in capsys.readouterr().err
    assert main(["inspect", str(built), "--target"]) == 3
    assert "what eager runs is not listed" in capsys.readouterr().err
    assert main(["inspect", str(built), "--target", "--metrics"]) == 2
