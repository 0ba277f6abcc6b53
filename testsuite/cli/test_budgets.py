"""Several budgets in one artifact: a program for each, the weights once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.ir.errors import InputError
from tokopt.ir.load import load
from tokopt.ir.plan import Plan
from tokopt.passes.validate import Verdict
from tokopt.targets.manifest import read_manifest

pytestmark = pytest.mark.slow

Written = Callable[..., str]
Capture = pytest.CaptureFixture[str]
BUDGETS = ("--budget", "0.5,0.25", "--method", "stride")


@pytest.fixture(scope="module")
def two(archive: Path) -> Path:
    folder = archive.with_name("two")
    line = ["compile", str(archive), *BUDGETS, "--target", "eager", "-o", str(folder)]
    assert main(line) == 0
    return folder


def test_the_first_budget_has_the_plain_names_and_each_its_plan_and_numbers(two: Path) -> None:
    names = {path.name for path in two.iterdir()}
    assert names == {
        *("manifest.json", "log.txt", "program.pt2"),
        *("plan.toml", "signature.json", "plan-0.25.toml", "signature-0.25.json"),
    }
    keeps = {
        part: Plan.from_toml((two / f"plan{part}.toml").read_text()).stages[0].keep
        for part in ("", "-0.25")
    }
    assert keeps == {"": 18, "-0.25": 9}
    seen = read_manifest(two).parts
    assert {part: own.budget.requested["tokens"] for part, own in seen.items()} == {
        "": 0.5,
        "-0.25": 0.25,
    }
    for own in seen.values():
        assert own.budget.total["tokens"].measured == own.budget.requested["tokens"]
        gates = [gate.gate for gate in own.gates]
        assert gates == ["structure", "identity", "selection", "oracle", "target"]
        assert all(gate.passed for gate in own.gates)


def test_each_program_is_that_of_an_artifact_of_its_own(
    archive: Path, two: Path, tmp_path: Path, pictures: Tensor
) -> None:
    model = tokopt.load(two)
    for budget in (0.5, 0.25):
        alone = tokopt.compile(
            archive, tmp_path / str(budget), budget=budget, method="stride", target="eager"
        )
        wanted = tokopt.load(alone.folder)(images=pictures, trace=True)
        for got in (
            model(images=pictures, trace=True, budget=budget),
            model.at(budget)({"images": pictures}, trace=True),
        ):
            assert got.keys() == wanted.keys()
            assert all(torch.equal(got[name], wanted[name]) for name in wanted)
    assert model(images=pictures, trace=True)["trace.0.kept"].shape == (5, 1 + 18)
    assert model.at(0.25) is model.at(0.25).at(0.25) and model.at(0.5) is model


@pytest.mark.exhaustive
def test_run_and_verify_and_the_result_know_all_budgets(
    archive: Path, two: Path, tmp_path: Path, written: Written, pictures: Tensor, capfd: Capture
) -> None:
    file, inputs = str(tmp_path / "out.safetensors"), written(images=pictures)
    line = ["run", str(two), "--inputs", inputs, "--budget", "0.25", "--trace", "-o", file]
    assert main(line) == 0
    assert load_file(file)["trace.0.kept"].shape == (5, 1 + 9)
    capfd.readouterr()
    assert main(["verify", str(two), "--against", str(archive), "--json"]) == 0
    gates = [gate["gate"] for gate in json.loads(capfd.readouterr().out)["gates"]]
    once = ["structure", "identity", "selection", "oracle", "program", "target"]
    assert gates == ["files", *once, *once]
    folder = str(tmp_path / "again")
    line = ["compile", str(archive), *BUDGETS, "--target", "eager", "--json", "-o", folder]
    assert main(line) == 0
    said = json.loads(capfd.readouterr().out)
    assert (said["budget"], said["tokens"]) == (0.5, 0.5)
    (other,) = said["others"]
    assert (other["budget"], other["tokens"], other["others"]) == (0.25, 0.25, [])


def test_a_budget_that_is_not_there_is_refused_with_those_that_are(
    two: Path, built: Path, written: Written, pictures: Tensor, capfd: Capture
) -> None:
    line = ["run", str(two), "--inputs", written(images=pictures), "--budget", "0.3"]
    assert main(line) == 2
    err = capfd.readouterr().err
    assert "no program for the budget 0.3" in err and "0.5 or 0.25" in err
    with pytest.raises(InputError, match=r"budget 0\.1"):
        tokopt.load(built).at(0.1)


def test_a_gate_that_fails_at_one_budget_fails_the_artifact(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    def last_fails(*given: object) -> list[Verdict]:
        failed = given[-1] == "-0.25"
        return [Verdict("target", not failed, "one thing with another", 0.5, 1e-4, "they differ")]

    monkeypatch.setattr("tokopt.cli.one_program.against_target", last_fails)
    folder = tmp_path / "x"
    assert main(["compile", str(archive), *BUDGETS, "--target", "eager", "-o", str(folder)]) == 1
    assert "gate target failed: they differ" in capfd.readouterr().err
    assert read_manifest(folder).status == "failed"


def test_onnx_models_of_all_budgets_have_their_weights_once(
    archive: Path, tmp_path: Path, pictures: Tensor
) -> None:
    folder = tmp_path / "two"
    compiled = tokopt.compile(
        archive, folder, budget=(0.5, 0.25), method="stride", target="onnxruntime-cpu"
    )
    assert compiled.ok and [other.budget.total for other in compiled.others] == [0.25]
    first, second = (
        {
            (where["location"], where["offset"]): int(where["length"])
            for weight in onnx.load(folder / name, load_external_data=False).graph.initializer
            if (where := {entry.key: entry.value for entry in weight.external_data})
        }
        for name in ("model.onnx", "model-0.25.onnx")
    )
    shared = sum(length for place, length in second.items() if place in first)
    weights = sum(p.numel() * 4 for p in load(archive).main.state_dict.values())
    assert shared > 0.9 * weights
    assert shared > 0.98 * sum(second.values()) and not (folder / "model-0.25.onnx.data").exists()
    model = tokopt.load(folder)
    assert model(images=pictures, trace=True, budget=0.25)["trace.0.kept"].shape == (5, 10)
