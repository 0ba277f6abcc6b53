"""``tokopt plan diff``: what it prints for people and for machines, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokopt.cli.main import main
from tokopt.ir.plan import Plan, Stage

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    plans = [
        Plan((Stage("vision:0", "stride", 18), Stage("vision:1", "random", 9)), 0.5),
        Plan((Stage("vision:0", "stride", 9), Stage("vision:end", "dart", 4)), 0.25),
    ]
    for name, plan in zip("ab", plans, strict=True):
        (tmp_path / name).write_text(plan.to_toml())
    return str(tmp_path / "a"), str(tmp_path / "b")


def test_a_person_reads_every_change_on_a_line(files: tuple[str, str], capsys: Capture) -> None:
    assert main(["plan", "diff", *files]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"--- {files[0]}",
        f"+++ {files[1]}",
        "~ budget 0.5 -> 0.25",
        "~ stage stride at vision:0: keep 18 -> 9",
        "- stage random at vision:1 keep = 9, quota = joint",
        "+ stage dart at vision:end keep = 4, quota = joint",
    ]


def test_a_machine_reads_one_object(files: tuple[str, str], capsys: Capture) -> None:
    assert main(["plan", "diff", *files, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not said["same"] and len(said["entries"]) == 3
    assert said["fields"] == [{"field": "budget", "before": 0.5, "after": 0.25}]


def test_an_artifact_stands_for_its_plan(built: Path, capsys: Capture) -> None:
    assert main(["plan", "diff", str(built), str(built / "plan.toml")]) == 0
    assert capsys.readouterr().out == "the plans are the same\n"


@pytest.mark.parametrize("line", [["plan"], ["plan", "diff", "no-such", "no-such"]])
def test_what_is_no_plan_is_refused(line: list[str], capsys: Capture) -> None:
    assert main(line) == 2
    assert "Traceback" not in capsys.readouterr().err
