"""The command's search: samples in, a plan and a table out; bad samples are named before it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from testsuite.passes.analysed import analysed
from testsuite.passes.search.searched import FEW
from torch import Tensor

from tokopt.cli import one_program
from tokopt.cli.asked import SEARCH, Wanted
from tokopt.cli.compiled import Compiled, journal_of
from tokopt.cli.compiler import compile
from tokopt.cli.main import main
from tokopt.ir.errors import InputError
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.targets.manifest import read_manifest


def program() -> Program:
    return Program({"forward": analysed("llava").sample.exported})


def samples() -> dict[str, Tensor]:
    family = analysed("llava")
    return family.named(family.sample.all_inputs[0])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("search")
    save_file(samples(), folder / "samples.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_program, "METHODS", FEW)
        wanted = Wanted(folder / "samples.safetensors", trials=2)
        return compile(program(), folder / "build", budget=0.25, target="eager", search=wanted)


def test_the_plan_is_the_best_of_the_table_and_every_gate_passed(made: Compiled) -> None:
    assert made.ok and made.budget.total <= 0.25
    told = json.loads((made.folder / SEARCH).read_text())["0.25"]
    distances = [row[told["measure"]] for row in told["judged"]]
    assert distances == sorted(distances) and told["whole"]
    assert {row["origin"] for row in told["judged"]} >= {"random", "stride", "vtc_cls"}
    stages = [{"site": s.site, "method": s.method, "keep": s.keep} for s in made.plan.stages]
    assert told["judged"][0]["stages"] == stages
    assert Plan.from_toml((made.folder / "plan.toml").read_text()).stages == made.plan.stages
    assert "plans judged by" in made.note


def test_a_search_within_limits_holds_them_on_the_cpu_that_is_stated(
    archive: Path, tmp_path: Path
) -> None:
    """The manifest has the device as it can be asked for again: the same limits, the same plan."""
    cpu = "cpu{float32=1e+11 bfloat16=1e+11 bandwidth=1e+10}"
    given = ["--budget", "tokens=0.5,latency=0.9", "--device", cpu, "--target", "eager"]
    save_file({"images": torch.rand(4, 3, 48, 48)}, tmp_path / "samples.safetensors")
    searched = ["--calibration", str(tmp_path / "samples.safetensors"), "--trials", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one_program, "METHODS", {name: FEW[name] for name in ("random", "stride")})
        line = ["compile", str(archive), *given, *searched]
        assert main([*line, "-o", str(tmp_path / "build")]) == 0
    manifest = read_manifest(tmp_path / "build")
    assert manifest.device == cpu
    asked, spent = manifest.budget.requested, manifest.budget.total
    assert asked.keys() == {"tokens", "latency"}
    for kind, limit in asked.items():
        predicted = spent[kind].predicted
        assert predicted is not None and 0 < predicted <= limit
    told = json.loads((tmp_path / "build" / SEARCH).read_text())["0.5"]
    assert {row["origin"] for row in told["judged"]} >= {"random", "stride"}


def test_explain_says_what_was_judged_at_every_site(
    made: Compiled, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["explain", str(made.folder), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["budgets"]
    judged = json.loads((made.folder / SEARCH).read_text())["0.25"]
    measure, why = judged["measure"], told["search"]
    assert why["best"] == min(row[measure] for row in judged["judged"])
    assert set(why["published"]) <= set(FEW) and "stride" in why["published"]
    for row in why["sites"]:
        there = [j for j in judged["judged"] if row["site"] in [s["site"] for s in j["stages"]]]
        assert row["distance"] == min(one[measure] for one in there)
    assert {s.site for s in made.plan.stages} <= {row["site"] for row in why["sites"]}
    assert main(["explain", str(made.folder)]) == 0
    shown = capsys.readouterr()
    assert f"of {len(judged['judged'])} plans judged" in shown.out and "--against" in shown.err


def test_the_journal_is_gone_once_the_artifact_is_there(made: Compiled) -> None:
    assert not journal_of(made.folder).exists()
    assert SEARCH in made.manifest.files


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"data": "nowhere.safetensors"}, "nowhere"),
        ({"data": "nan.safetensors"}, "NaN"),
        ({"data": "short.safetensors"}, "pixel_values"),
        ({"data": "images.safetensors"}, "placeholder"),
    ],
)
def test_samples_that_do_not_fit_are_refused_before_the_search(
    wanted: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = samples()
    pixels = next(name for name, value in given.items() if value.is_floating_point())
    ids = next(name for name in given if name != pixels)
    save_file({**given, pixels: torch.full_like(given[pixels], torch.nan)}, "nan.safetensors")
    save_file({ids: given[ids]}, "short.safetensors")
    save_file({**given, ids: torch.zeros_like(given[ids])}, "images.safetensors")
    with pytest.raises(InputError, match=message):
        compile(program(), "build", budget=0.25, target="eager", search=Wanted(**wanted))
    assert not Path("build").exists() and not journal_of(Path("build")).exists()


def test_what_a_search_chooses_is_not_given_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(
        ["compile", "model.pt2", "--budget", "0.1", "--effort", "quick", "--method", "random"]
    )
    assert code == 2 and "--method cannot be given with a search" in capsys.readouterr().err


@pytest.mark.parametrize("wanted", [{"effort": "huge"}, {"trials": -1}])
def test_an_effort_that_is_none_is_refused(wanted: dict[str, object]) -> None:
    with pytest.raises(InputError):
        Wanted(**wanted)  # type: ignore[arg-type]
