import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from testsuite.passes.samples import KNOWN, Tiny, edited, tiny
from torch.export import export

from tokopt.cli.main import main
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.save import save
from tokopt.ir.text import print_program
from tokopt.passes import registry
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.normalize import Normalize

Capture = pytest.CaptureFixture[str]


@dataclass(frozen=True)
class Crash(Pass):
    """A pass with a bug."""

    def run(self, program: Program) -> PassResult:
        raise ZeroDivisionError("of tokens")


@dataclass(frozen=True)
class Break(Pass):
    """A pass that leaves a broken graph."""

    def run(self, program: Program) -> PassResult:
        def edit(graph: torch.fx.Graph) -> None:
            del next(n for n in graph.nodes if "relu" in str(n.target)).meta["val"]

        return PassResult(edited(program, edit), modified=True)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the sample passes known to the command."""
    known = {**KNOWN, "crash": Crash, "break": Break, "normalize": Normalize}
    monkeypatch.setattr(registry, "registered_passes", lambda: known)
    monkeypatch.setattr("tokopt.passes.pipeline.registered_passes", lambda: known)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("opt") / "model.pt2"
    save(Program.of(export(Tiny().eval(), (torch.ones(3, 4),))), path)
    return str(path)


def test_the_result_is_printed_to_stdout_and_nothing_else(
    model: str, capsys: Capture, check: Callable[[str], None]
) -> None:
    """
    CHECK: graph model {
    CHECK: %relu_0 : f32[3, 2] = aten.relu(%linear_0)
    CHECK-NEXT: %relu_1 : f32[3, 2] = aten.relu(%relu_0)
    CHECK-NEXT: return %relu_1
    """
    assert main(["opt", model, "-p", "normalize", "-o", "-"]) == 0
    out = capsys.readouterr().out
    check(out)
    assert out == print_program(Normalize().run(load(model)).program)


def test_the_anonymous_print_has_no_names(model: str, capsys: Capture) -> None:
    main(["opt", model, "-o", "-", "--anonymous"])
    out = capsys.readouterr().out
    assert "%input_0 : f32[3, 4] = input" in out and "head" not in out


def test_the_result_is_saved_and_read_back(
    passes: None, model: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.pt2"
    assert main(["opt", model, "-p", "normalize,drop-relu", "-o", str(out)]) == 0
    assert capsys.readouterr().out == "normalize: unchanged\ndrop-relu: changed; relus 1\n"
    rows = torch.randn(3, 4)
    assert torch.equal(load(out).main.module()(rows), load(model).main.module()(rows))
    assert print_program(load(out)).count("aten.relu(") == 1


def test_json_is_one_object_with_every_pass(passes: None, model: str, capsys: Capture) -> None:
    pipeline = "normalize,settings{site=a keep=1},drop-relu,drop-relu"
    assert main(["opt", model, "-p", pipeline, "--json", "-o", "-"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["schema_version"], report["pipeline"], report["source"]) == (1, pipeline, model)
    assert [(p["name"], p["modified"]) for p in report["passes"]] == [
        ("normalize", False),
        ("settings", False),
        ("drop-relu", True),
        ("drop-relu", False),
    ]
    assert report["passes"][2]["statistics"] == {"relus": 1}
    assert report["program"].startswith("graph model {")
    assert "remark: drop-relu: only one relu\n" in err


def test_programs_are_shown_around_each_pass_on_stderr(
    passes: None, model: str, capsys: Capture
) -> None:
    options = ["--print-ir-before-all", "--print-ir-after-all"]
    assert main(["opt", model, "-p", "nothing,drop-relu", *options]) == 0
    out, err = capsys.readouterr()
    titles = [line for line in err.splitlines() if line.startswith("//")]
    assert titles == [
        "// before nothing",
        "// after nothing: unchanged",
        "// before drop-relu",
        "// after drop-relu",
    ]
    assert "graph model" not in out and err.count("graph model {") == 3


def test_times_and_statistics_are_a_table_on_stderr(
    passes: None, model: str, capsys: Capture
) -> None:
    main(["opt", model, "-p", "drop-relu", "--time-passes", "--statistics"])
    rows = [line.split() for line in capsys.readouterr().err.splitlines()]
    (row,) = [row for row in rows if row[:1] == ["drop-relu"]]
    assert float(row[1]) >= 0 and row[2:] == ["changed;", "relus", "1"]


def test_a_broken_graph_is_found_after_the_pass_unless_told_not_to(
    passes: None, model: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["opt", model, "-p", "break,nothing"]) == 5
    assert "pass break left a broken graph" in capsys.readouterr().err
    assert main(["opt", model, "-p", "break,nothing", "--no-verify-each"]) == 0


def test_a_crash_reproduces_from_its_folder(
    passes: None, model: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "fault"
    assert main(["opt", model, "-p", "drop-relu,crash", "--crash-reproducer", str(folder)]) == 5
    first = capsys.readouterr().err
    assert "error: pass crash crashed: ZeroDivisionError: of tokens\n" in first
    assert f"seen again by: tokopt opt {folder / 'input.pt2'} -p drop-relu,crash" in first
    assert (tmp_path / "tokopt-crash-1" / "pipeline.txt").read_text() == "drop-relu,crash\n"
    assert (
        main(["opt", str(folder / "input.pt2"), "-p", (folder / "pipeline.txt").read_text()]) == 5
    )
    assert "error: pass crash crashed: ZeroDivisionError: of tokens\n" in capsys.readouterr().err


def test_a_pipeline_is_printed_as_it_was_understood(passes: None, capsys: Capture) -> None:
    text = "drop_relu , settings{keep=1 ratio=0.5 site=a}"
    assert main(["opt", "-p", text, "--print-pipeline"]) == 0
    assert capsys.readouterr().err == "drop-relu,settings{site=a keep=1}\n"


def test_passes_are_listed_with_their_options(capsys: Capture) -> None:
    assert main(["opt", "--list-passes"]) == 0
    assert "normalize" in capsys.readouterr().out.splitlines()
    assert main(["opt", "--list-passes", "--json"]) == 0
    assert "normalize" in json.loads(capsys.readouterr().out)["passes"]


@pytest.mark.parametrize(
    ("argv", "what"),
    [
        (["-p", "normalize"], "no program was given"),
        (["nowhere.pt2", "-p", "normalise"], "there is no pass 'normalise'"),
        (["nowhere.pt2"], "there is no such file"),
        (["nowhere.pt2", "-o", "out.onnx"], "this is no name for a program"),
        (["nowhere.pt2", "-o", "no/such/folder/out.pt2"], "there is no such folder"),
    ],
)
def test_wrong_input_is_exit_code_2(
    argv: list[str], what: str, capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["opt", *argv]) == 2
    assert f"error: {what}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_sample_program_stays_as_it_was() -> None:
    assert print_program(tiny()).count("aten.relu(") == 2
