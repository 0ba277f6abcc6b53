"""However an image comes among the words: words stay, and what is not understood stays whole."""

from __future__ import annotations

import pytest
import torch
from testsuite.exhaustive import crossed
from testsuite.passes.gates import facts_of, failures
from testsuite.passes.prefixed import Form, build

from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import visual_rows
from tokopt.passes.methods.registry import find_method

FORMS = {
    "image in front": Form(),
    "image among words": Form(ahead=2),
    "image in front, free prompt": Form(dynamic=True),
    "tower with class row": Form(ahead=2, class_row=True),
    "places given by numbers": Form(how="index_put"),
    "places of whole rows": Form(how="scatter"),
    "the same places in every item": Form(how="index_copy"),
    "a range that is overwritten": Form(how="assign"),
    "rows looked up by a count": Form(how="where"),
    "rows looked up behind a row of zeros": Form(how="where, a row of zeros"),
    "rows of all items looked up": Form(how="where, flat"),
}
PLANS = {
    "tower": (Stage("vision:1", "stride", 4),),
    "decoder": (Stage("decoder:1", "fastv", 3),),
    "three stages": (
        Stage("vision:end", "random", 7),
        Stage("decoder:1", "fastv", 5),
        Stage("decoder:2", "fastv", 2),
    ),
}


@pytest.mark.parametrize(("form", "plan"), crossed(FORMS, PLANS))
def test_a_plan_passes_every_gate_however_the_image_is_merged(form: str, plan: str) -> None:
    sample = build(FORMS[form])
    assert failures(facts_of(sample), PLANS[plan], sample.inputs) == []


@pytest.mark.parametrize("form", FORMS)
def test_only_rows_of_the_image_count_and_leave(form: str) -> None:
    sample = build(FORMS[form])
    facts = facts_of(sample)
    assert [stack.role for stack in facts.stacks] == ["vision", "decoder"]
    assert facts.consumer.count == 10 and facts.consumer.relay == -1
    plan = Plan((Stage("decoder:1", "stride", 1),))
    assert visual_rows(facts, plan) == (10, 1, 1)
    kept = apply_plan(facts.exported, plan, find_method).exported.module()(*sample.inputs)[1][0]
    how = FORMS[form].how
    starts, length = [FORMS[form].ahead] * 2, 16
    if how in ("index_put", "scatter"):
        starts, length = [0, 1], 17
    elif how in ("index_copy", "assign"):
        starts, length = [2, 2], 17
    elif how.startswith("where"):
        starts, length = [2, 1], 14
    for start, rows in zip(starts, kept.tolist(), strict=True):
        image = set(range(start, start + 10))
        assert len(image & set(rows)) == 1
        assert set(range(length)) - image <= set(rows)


def test_an_image_behind_all_words_has_no_relay() -> None:
    sample = build(Form(last=True))
    facts = facts_of(sample)
    assert facts.consumer.role == "decoder" and facts.consumer.relay is None
    assert failures(facts, (Stage("decoder:1", "stride", 3),), sample.inputs) == []


def test_rows_that_do_not_arrive_in_order_are_left_alone() -> None:
    facts = facts_of(build(Form(how="where, every other row")))
    roles = {stack.role: stack for stack in facts.stacks}
    assert set(roles) == {"vision", "mixed"} and roles["mixed"].sites == ()


def test_the_prompt_is_free_behind_a_cut_in_front_of_it() -> None:
    sample = build(Form(dynamic=True))
    facts = facts_of(sample)
    plan = Plan((Stage("decoder:1", "stride", 3),))
    module = apply_plan(facts.exported, plan, find_method).exported.module()
    longer = torch.arange(2 * 9).reshape(2, 9) % 11
    assert module(sample.inputs[0], longer)[0].shape == (2, 19, 11)
