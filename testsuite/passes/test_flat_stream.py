"""A stream that flattens items and rows into one dim is cut per item, as any other."""

from __future__ import annotations

import pytest
from testsuite.passes.flat_vit import build

from tokopt.ir.facts import analyse
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.validate import Checked, validate

PLANS = (
    (Stage("vision:1", "vtc_cls", 5),),
    (Stage("vision:0", "stride", 7), Stage("vision:1", "flowcut", 3)),
)


@pytest.mark.parametrize("stages", PLANS, ids=["one stage", "two stages"])
def test_items_of_a_flattened_stream_keep_their_own_rows(stages: tuple[Stage, ...]) -> None:
    sample = build(batch=3)
    normal = normalize(sample.exported)
    applied = apply_plan(normal, Plan(stages), find_method)
    name = str(normal.graph_signature.user_inputs[0])
    checked = Checked(analyse(normal), Plan(stages), applied, find_method)
    verdicts = list(validate(checked, [{name: sample.inputs[0]}]))
    assert all(v.passed for v in verdicts), [v.message for v in verdicts]
