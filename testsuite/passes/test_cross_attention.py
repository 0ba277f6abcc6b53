"""Decoders that read the image by cross-attention: sites on what each layer reads."""

from __future__ import annotations

import pytest
from testsuite.exhaustive import crossed
from testsuite.passes.captioner import Form, build
from testsuite.passes.gates import facts_of, failures

from tokopt.ir.cross import ALIAS
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.budget import spent, visual_rows
from tokopt.passes.default_plan import default_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize

FORMS = {
    "plain": Form(),
    "class row": Form(class_row=True),
    "keys computed ahead": Form(ahead=True),
    "image before words": Form(cross_first=True),
    "a norm of the image in each layer": Form(normed=True),
}
PLANS = {
    "in the tower": (Stage("vision:1", "stride", 4),),
    "what the second layer reads": (Stage("decoder:1", "fastv", 3),),
    "falling from layer to layer": (
        Stage("decoder:0", "random", 8),
        Stage("decoder:1", "fastv", 5),
        Stage("decoder:2", "fastv", 2),
    ),
    "tower and layers": (Stage("vision:2", "stride", 6), Stage("decoder:2", "flowcut", 1)),
}


@pytest.mark.parametrize(("form", "plan"), crossed(FORMS, PLANS))
def test_a_plan_on_a_cross_attention_decoder_passes_every_gate(form: str, plan: str) -> None:
    sample = build(FORMS[form])
    assert failures(facts_of(sample), PLANS[plan], sample.inputs) == []


@pytest.mark.parametrize("form", FORMS)
def test_the_readings_of_an_image_are_the_layers_that_budgets_count(form: str) -> None:
    facts = facts_of(build(FORMS[form]))
    roles = {stack.role: stack for stack in facts.stacks}
    assert set(roles) == {"vision", "decoder", "text"}
    decoder = facts.consumer
    assert decoder is roles["decoder"] and decoder.stack.cross
    assert decoder.count == 10 and decoder.protected == (form == "class row")
    assert [site.name for site in decoder.sites] == ["decoder:0", "decoder:1", "decoder:2"]
    assert visual_rows(facts, Plan((Stage("decoder:1", "stride", 4),))) == (10, 4, 4)
    assert visual_rows(facts, Plan((Stage("vision:end", "stride", 4),))) == (4, 4, 4)
    plan = default_plan(facts, 0.5)
    assert spent(facts, plan) <= 0.5 < spent(facts, plan) + 1 / 10


def test_rows_that_tiles_hold_apart_are_one_axis_where_they_are_read() -> None:
    """Two tiles of 10 patches, projected as ``[tiles, 10, C]`` and joined to 20 keys per item."""
    sample = build(Form(tiles=2))
    facts = facts_of(sample)
    assert facts.consumer.role == "decoder" and facts.consumer.count == 20
    for stages in (
        (Stage("decoder:0", "stride", 7),),
        (Stage("decoder:1", "fastv", 3), Stage("decoder:2", "random", 2)),
        (Stage("vision:1", "stride", 4),),
        (Stage("vision:1", "stride", 6), Stage("decoder:1", "fastv", 2)),
    ):
        assert failures(facts, stages, sample.inputs) == [], stages
    assert visual_rows(facts, Plan((Stage("vision:1", "stride", 4),))) == (8, 8, 8)


def test_learned_queries_that_read_an_image_are_a_resampler_and_the_tower_is_the_consumer() -> None:
    sample = build(Form(latents=True))
    facts = facts_of(sample)
    assert [stack.role for stack in facts.stacks] == ["vision", "latent", "resampler"]
    assert facts.consumer.role == "vision"
    assert failures(facts, (Stage("resampler:1", "stride", 3),), sample.inputs) == []


def test_normalizing_twice_threads_once() -> None:
    once = normalize(build(Form()).exported)
    twice = normalize(once)
    count = [sum(n.target is ALIAS for n in p.graph.nodes) for p in (once, twice)]
    assert count == [3, 3]


def test_a_fastv_stage_before_any_layer_has_read_is_refused() -> None:
    facts = facts_of(build(Form()))
    with pytest.raises(UnsupportedError, match="no layer lies before this site"):
        apply_plan(facts.exported, Plan((Stage("decoder:0", "fastv", 3),)), find_method)
