"""Every way to be refused: the code, what is said, and that nothing is left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from testsuite.passes.analysed import analysed
from torch import Tensor

import tokopt
from tokopt.cli.main import main
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program

Written = Callable[..., str]
Capture = pytest.CaptureFixture[str]

PLAN = 'schema = 1\n\n[[stage]]\nsite = "vision:0"\nmethod = "stride"\nkeep = 18\n'


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def compiling(archive: Path, *options: str) -> list[str]:
    return ["compile", str(archive), "--target", "eager", "-o", "build", *options]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "one of the arguments --budget --plan is required"),
        (["--budget", "0"], 2, "in (0, 1]"),
        (["--budget", "2"], 2, "in (0, 1]"),
        (["--budget", "nan"], 2, "in (0, 1]"),
        (["--budget", "half"], 2, "invalid float value"),
        (["--budget", "0.5,half"], 2, "invalid float value: '0.5,half'"),
        (["--budget", "0.5,"], 2, "invalid float value"),
        (["--budget", "0.5,2"], 2, "budget 2.0"),
        (["--budget", "0.5,0.25,0.50"], 2, "budgets 0.5, 0.25, 0.5"),
        (["--budget", "0.5,0.01", "--method", "stride"], 4, "cannot meet the budget 0.01"),
        (["--budget", "0.5", "--method", "strid"], 2, "did you mean stride?"),
        (["--budget", "0.5", "--method", "fastv"], 3, "fastv has no stack"),
        (["--budget", "0.5", "--target", "abacus"], 2, "there is no target 'abacus'"),
        (["--budget", "0.01", "--method", "stride"], 4, "at least 0.02778"),
        (["--budget", "0.5", "--inputs", "nowhere.safetensors"], 2, "cannot be read"),
        (["--budget", "0.5", "-o", "no/where"], 2, "does not exist"),
        (["--plan", "nowhere.toml"], 2, "the plan cannot be read"),
        (["--plan", "plan.toml", "--budget", "0.5"], 2, "not allowed with"),
        (["--plan", "plan.toml", "--method", "stride"], 2, "--method cannot be given with --plan"),
        (["--plan", "plan.toml", "--seed", "0"], 2, "--seed cannot be given with --plan: the plan"),
        (["--plan", "plan.toml", "--outputs", "full"], 2, "--plan without --outputs"),
    ],
)
def test_options_that_cannot_be_met_are_refused(
    archive: Path, place: Path, capfd: Capture, options: list[str], code: int, said: str
) -> None:
    assert main(compiling(archive, *options)) == code
    assert said in capfd.readouterr().err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("keep = 18", "keep = 18\nkeeps = 18", 2, "unknown field 'keeps'"),
        ("schema = 1", "schema = 9", 2, "another schema version"),
        ("keep = 18", "keep = 37", 2, "at most 36"),
        ('"stride"', '"strides"', 2, "did you mean stride?"),
        ("vision:0", "vision:7", 3, "one of vision:0, vision:end"),
        ("vision:0", "decoder:0", 3, "there is no site 'decoder:0'"),
        ("[[stage]]", "[[stage]", 2, "not TOML"),
    ],
)
def test_plans_that_cannot_be_applied_are_refused(
    archive: Path, place: Path, capfd: Capture, old: str, new: str, code: int, said: str
) -> None:
    assert old in PLAN
    Path("plan.toml").write_text(PLAN.replace(old, new))
    assert main(compiling(archive, "--plan", "plan.toml")) == code
    assert said in capfd.readouterr().err
    assert [path.name for path in place.iterdir()] == ["plan.toml"]


def test_a_site_behind_a_barrier_is_refused_with_the_reason(
    place: Path,
) -> None:
    program = Program.of(analysed("qwen_uneven").sample.exported)  # its windows are a barrier
    with pytest.raises(UnsupportedError, match="vision:0") as caught:
        tokopt.compile(program, place / "build", plan=Plan.from_toml(PLAN), target="eager")
    assert caught.value.exit_code == 3 and list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda x: {"images": x.where(x < 2, torch.nan)}, "holds NaN"),
        (lambda x: {"images": x[..., :40].contiguous()}, "float32 [batch, 3, 48, 48]"),
        (lambda x: {"images": x.double()}, "does not change a dtype silently"),
        (lambda x: {"pictures": x}, "unknown input 'pictures'"),
        (lambda x: {}, "'images' is missing"),
        (lambda x: {"images": x[:1].expand(65, -1, -1, -1).clone()}, "from 1 to 64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    archive: Path,
    built: Path,
    place: Path,
    written: Written,
    pictures: Tensor,
    capfd: Capture,
    wrong: Callable[[Tensor], dict[str, Tensor]],
    said: str,
) -> None:
    inputs = written(**wrong(pictures))
    for line in (compiling(archive, "--budget", "0.5"), ["run", str(built)]):
        assert main([*line, "--inputs", inputs]) == 2
        err = capfd.readouterr().err
        assert said in err and inputs in err
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"", b"not a zip"])
def test_a_model_that_is_no_archive_is_refused(
    place: Path, tmp_path: Path, capfd: Capture, content: bytes | None
) -> None:
    path = tmp_path / "model.pt2"
    if content is not None:
        path.write_bytes(content)
    assert main(compiling(path, "--budget", "0.5", "--json")) == 2
    said = capfd.readouterr()
    error = json.loads(said.out)["error"]
    assert (error["kind"], error["exit_code"]) == ("InputError", 2)
    assert str(path) in error["where"] and "Traceback" not in said.err
    assert list(place.iterdir()) == []


def test_a_folder_that_is_not_ours_is_refused_before_any_work_and_left_as_it_was(
    archive: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    Path("build").mkdir()
    Path("build/thesis.txt").write_text("years of work")
    monkeypatch.setattr("tokopt.cli.one_program.analyse", stop)
    assert main(compiling(archive, "--budget", "0.5")) == 2
    assert "not a tokopt artifact" in capfd.readouterr().err
    assert Path("build/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    "stage", ["planner.observe", "compiler.save_program", "one_program.against_target"]
)
def test_ctrl_c_leaves_what_was_there_before(
    archive: Path, built: Path, place: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    monkeypatch.setattr(f"tokopt.cli.{stage}", stop)
    shutil.copytree(built, "build")
    assert main(compiling(archive, "--budget", "0.5", "--method", "random")) == 130
    assert [path.name for path in place.iterdir()] == ["build"]
    for path in built.iterdir():
        assert Path("build", path.name).read_bytes() == path.read_bytes(), path.name
