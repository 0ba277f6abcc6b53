"""Where the normal form computes otherwise than the archive, a gate says whether alike."""

from __future__ import annotations

import pytest
from testsuite.passes.samples import tiny
from testsuite.passes.test_pieces import packed
from torch import fx

from tokopt.cli.normal_gate import judge_normal
from tokopt.passes import stacked
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import Verdict


def verdicts() -> list[Verdict]:
    sample = packed([8, 8, 8])
    normal = normalize(sample.exported)
    (name,) = map(str, normal.graph_signature.user_inputs)
    return list(judge_normal(sample.exported, normal, {name: sample.inputs[0]}))


def test_a_program_that_is_only_tidied_needs_no_gate() -> None:
    exported = tiny().main
    assert list(judge_normal(exported, normalize(exported), {})) == []


def test_a_loop_that_is_run_as_one_is_compared_with_the_archives() -> None:
    (verdict,) = verdicts()
    assert verdict.gate == "normal form" and verdict.passed
    assert verdict.max_difference is not None and verdict.max_difference <= 1e-6


def test_a_wrong_rule_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = stacked.STACKED["aten::transpose"]

    def wrong(graph: fx.Graph, node: fx.Node, given: stacked.Given) -> fx.Node | None:
        made = right(graph, node, given)
        assert made is not None
        return stacked.call(graph, stacked.aten.flip.default, made, [0])

    monkeypatch.setitem(stacked.STACKED, "aten::transpose", wrong)
    (verdict,) = verdicts()
    assert not verdict.passed and "differ" in verdict.message
