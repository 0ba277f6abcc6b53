from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.ir.errors import GateError, InputError
from tokopt.ir.load import load
from tokopt.ir.plan import Plan
from tokopt.passes.validate import Verdict

pytestmark = pytest.mark.slow

FILES = {"manifest.json", "plan.toml", "program.pt2", "log.txt"}
STRIDE = ("--budget", "0.5", "--method", "stride", "--target", "eager")


def test_an_artifact_holds_the_model_the_program_the_plan_the_log_and_the_manifest(
    built: Path,
) -> None:
    assert {path.name for path in built.iterdir()} == FILES | {"signature.json"}
    manifest = json.loads((built / "manifest.json").read_text())
    assert manifest["status"] == "ok" and manifest["budget"]["total"]["tokens"]["measured"] == 0.5
    gates = [gate["gate"] for gate in manifest["gates"]]
    assert gates == ["structure", "identity", "selection", "oracle", "target"]
    assert all(gate["passed"] for gate in manifest["gates"])


def test_two_processes_write_the_same_bytes_and_another_seed_does_not(
    archive: Path, tmp_path: Path
) -> None:
    line = ["compile", str(archive), "--budget", "0.5", "--method", "random", "--seed", "3"]
    line += ["--target", "onnxruntime-cpu"]
    command = [sys.executable, "-m", "tokopt", *line, "-o", str(tmp_path / "one")]
    paths = os.pathsep.join(map(str, sys.path))
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths}, cwd=tmp_path)
    assert main([*line, "-o", str(tmp_path / "two")]) == 0
    one, two = ({p.name: p for p in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert set(one) == set(two) == FILES | {"model.onnx"}
    for name in ("model.onnx", "program.pt2", "plan.toml"):
        assert one[name].read_bytes() == two[name].read_bytes(), name
    manifests = [json.loads(folder["manifest.json"].read_text()) for folder in (one, two)]
    for manifest in manifests:
        del manifest["run"]
    assert manifests[0] == manifests[1]
    line[-3:] = ["4", "--target", "eager"]
    assert main([*line, "-o", str(tmp_path / "two")]) == 0
    assert (tmp_path / "two" / "program.pt2").read_bytes() != (
        tmp_path / "one" / "program.pt2"
    ).read_bytes()


def test_a_plan_is_applied_exactly(archive: Path, built: Path, tmp_path: Path) -> None:
    plan, again = built / "plan.toml", tmp_path / "again"
    line = ["compile", str(archive), "--plan", str(plan), "--target", "eager", "-o", str(again)]
    assert main(line) == 0
    for name in ("plan.toml", "program.pt2"):
        assert (again / name).read_bytes() == (built / name).read_bytes(), name


def test_with_json_stdout_is_one_object(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = str(tmp_path / "build")
    assert main(["compile", str(archive), *STRIDE, "--json", "-o", folder]) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["status"], said["tokens"], said["artifact"]) == ("ok", 0.5, folder)
    (stage,) = said["stages"]
    budget = json.loads((Path(folder) / "manifest.json").read_text())["budget"]
    spent = {name: stage[f"selector_{name}"] for name in ("flops", "bytes")}
    assert budget["selector"] == [{"site": stage["site"], **spent}]
    share = stage["selector_flops"] / budget["flops_saved"]
    assert 0 < said["selector_share_of_flops_saved"] == share < 0.01
    assert budget["total"]["flops"] == {"predicted": said["flops"], "measured": None}
    assert said["rows"] == {"role": "vision", "of": 36, "per_layer": [18]}
    (stage,) = said["stages"]
    assert (stage["site"], stage["method"], stage["keep"]) == ("vision:0", "stride", 18)


def test_the_python_form_compiles_loads_and_runs(
    archive: Path, tmp_path: Path, pictures: Tensor
) -> None:
    whole = tokopt.compile(archive, tmp_path / "whole", budget=1.0, target="eager")
    compiled = tokopt.compile(
        load(archive), tmp_path / "half", budget=0.5, target="eager", inputs={"images": pictures}
    )
    assert whole.ok and compiled.ok and compiled.budget.total <= 0.5
    with torch.no_grad():
        wanted = load(archive).main.module()(pictures)
    all_kept = tokopt.load(whole.folder)(images=pictures)["output"]
    outputs = tokopt.load(compiled.folder)(images=pictures)["output"]
    torch.testing.assert_close(all_kept, wanted)
    assert outputs.shape == wanted.shape and not torch.allclose(outputs, wanted, atol=1e-3)


def test_the_trace_counts_what_the_plan_says(built: Path, pictures: Tensor) -> None:
    kept = tokopt.load(built)(images=pictures, trace=True)["trace.0.kept"]
    (stage,) = Plan.from_toml((built / "plan.toml").read_text()).stages
    assert kept.shape == (5, 1 + stage.keep)  # the class row stays
    assert bool((kept.diff() > 0).all())


@pytest.mark.parametrize("options", [{}, {"budget": 0.5, "plan": "plan.toml"}])
def test_the_python_form_takes_either_a_budget_or_a_plan(
    archive: Path, options: dict[str, float | str]
) -> None:
    with pytest.raises(InputError, match="either a budget or a plan"):
        tokopt.compile(archive, **options)


def refused(*_: object) -> list[Verdict]:
    return [Verdict("target", False, "one thing with another", 0.5, 1e-4, "they differ by 0.5")]


def test_a_failing_gate_keeps_and_marks_the_artifact(
    archive: Path,
    tmp_path: Path,
    written: Callable[..., str],
    pictures: Tensor,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("tokopt.cli.one_program.against_target", refused)
    folder = tmp_path / "build"
    assert main(["compile", str(archive), *STRIDE, "-o", str(folder)]) == 1
    assert "gate target failed: they differ by 0.5" in capfd.readouterr().err
    assert json.loads((folder / "manifest.json").read_text())["status"] == "failed"
    assert main(["run", str(folder), "--inputs", written(images=pictures)]) == 1
    assert "failed verification: target" in capfd.readouterr().err
    with pytest.raises(GateError):
        tokopt.load(folder)
    assert tokopt.load(folder, allow_failed=True)(images=pictures)["output"].shape == (5, 10)


def test_a_failing_gate_is_said_in_json(
    archive: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for gate in ("compiler.validate", "one_program.against_target"):
        monkeypatch.setattr(f"tokopt.cli.{gate}", refused)
    line = ["compile", str(archive), *STRIDE, "--json", "-o", str(tmp_path / "build")]
    assert main(line) == 1
    said = json.loads(capfd.readouterr().out)
    assert said["status"] == "failed" and said["gates"][-1]["note"] == "they differ by 0.5"


def test_limits_are_kept_together_and_recorded(
    archive: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line = ["compile", str(archive), "--target", "eager", "-o", str(tmp_path / "built")]
    assert main([*line, "--budget", "tokens=0.9,flops=0.8,latency=1s", "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["requested"] == {"tokens": 0.9, "flops": 0.8, "latency": 1.0}
    assert said["tokens"] <= 0.9 and 0.7 < said["flops"] <= 0.8
    spent = json.loads((tmp_path / "built" / "manifest.json").read_text())["budget"]["total"]
    assert 0 < spent["latency"]["predicted"] < 1 and "kv" not in spent
    assert main([*line, "--budget", "flops=0.001"]) == 4
    assert main([*line, "--budget", "tokens=0.5", "--device", "abacus"]) == 2
    assert "abacus" in capfd.readouterr().err


def test_attention_is_asked_for_beside_a_budget_of_a_model_with_a_decoder(
    archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["compile", str(archive), "-o", str(tmp_path / "out"), "--attention", "var{p=0.5}"]
    assert main([*line, *STRIDE]) == 3
    assert "this model has none" in capsys.readouterr().err
    assert main([*line, *STRIDE, "--trials", "1"]) == 2
    assert main([*line, "--plan", "plan.toml"]) == 2
    assert "--attention cannot be given with --plan" in capsys.readouterr().err
