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
    assert kinds["stc_cacher"] == "reuse"
    vtc = next(entry for entry in listed if entry["name"] == "vtc_cls")
    assert vtc["scope"] == ["vision"] and vtc["cost"] == "O(N)"
    assert vtc["licence"] == "Apache-2.0"
    assert vtc["needs_in_words"] == ["attention", "the class token"]
    assert vtc["needs"] == ["layers", "relay"] and vtc["options"] == {"start": "scaled"}


NAMED = """vflowopt flowcut hiprune holov todre vtc_cls visiondrop fopru hired mmtok catp transprune
vla_pruner stc stc_cacher fastervlm tokencut lexrank normgrad fastv pdrop visionzip tome sparsevlm
dart divprune cdpruner follow_the_flow var paint random stride downsample"""
"""What the library is to hold; ToC3D's slow path is a stage's ``until``, with any of them."""


def test_the_list_has_every_method_that_is_to_be_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--json") == 0
    listed = {entry["name"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(listed) == set(NAMED.split())
    for entry in listed.values():
        assert all(entry[key] for key in ("scope", "paper", "licence", "cost", "notes"))
    # Only todre wishes for more: the class token where there is one.
    silent = {name for name, entry in listed.items() if not entry["needs_in_words"]}
    assert silent == {"random", "stride", "divprune", "lexrank", "todre"}


def test_the_tables_have_a_row_per_method(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    for entry in map(methods.describe, [*METHODS.values(), *REWRITES.values()]):
        text, facts = (line for line in lines if line.split()[:1] == [entry["name"]])
        assert entry["notes"] in text
        for word in (entry["paper"], entry["licence"], entry["cost"], *entry["scope"]):
            assert word in facts
