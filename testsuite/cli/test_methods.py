import argparse
import json

import pytest

from tokopt.cli import methods
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.rewrites.registry import REWRITES


def run(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    methods.add_parser(parser.add_subparsers())
    parsed = parser.parse_args(["methods", *arguments])
    return parsed.run(parsed)


def test_json_lists_every_method_with_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    listed = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in listed] == [*METHODS, *REWRITES]
    kinds = {entry["name"]: entry["kind"] for entry in listed}
    assert kinds["vtc_cls"] == "stage" and kinds["paint"] == "attention"
    vtc = next(entry for entry in listed if entry["name"] == "vtc_cls")
    assert vtc["needs"] == ["layers", "relay"] and vtc["options"] == {"start": "scaled"}


def test_the_table_has_a_row_per_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run() == 0
    text = capsys.readouterr().out
    lines = text.splitlines()
    for name, method in {**METHODS, **REWRITES}.items():
        (row,) = (line for line in lines if line.split()[:1] == [name])
        assert method.paper in row and method.notes in row
