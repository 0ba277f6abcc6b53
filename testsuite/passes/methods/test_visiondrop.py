import dataclasses

import numpy as np
import pytest
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.llava_attention import truth
from testsuite.passes.methods.test_fold_laws import chosen
from testsuite.passes.methods.test_received import matrix
from testsuite.passes.methods.test_visionzip import reference

from tokopt.ir.errors import InputError
from tokopt.passes.fit import fit
from tokopt.passes.methods.method import LayerTap, Placement, Setting, Taps
from tokopt.passes.methods.registry import find_method
from tokopt.passes.methods.visiondrop import METHOD, tower_rows
from tokopt.passes.oracle.oracle import run_oracle


def seen_by_tokens(taps: Taps, layer: LayerTap) -> np.ndarray:
    """The mean over visual queries of the square matrix."""
    whole = matrix(layer)
    inside = taps.candidates.numpy()
    return np.stack([whole[item][inside[item]].mean(0) for item in range(len(whole))])


def same(taps: Taps, wanted: tuple[list[list[int]], np.ndarray]) -> None:
    stay = chosen("visiondrop", taps)
    assert stay.tolist() == wanted[0]
    assert METHOD.combine is not None
    made = METHOD.combine(taps, stay).numpy()
    np.testing.assert_allclose(made, wanted[1], rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(("keep", "contextual"), [(5, 1), (16, 2), (25, 3)])
def test_a_tower_keeps_and_folds_as_visionzip_with_an_eighth_of_contextual_rows(
    keep: int, contextual: int
) -> None:
    taps = drawn_taps(rows=42, keep=keep)
    same(taps, reference(taps, keep - contextual, contextual))


def test_a_tower_without_class_token_reads_what_rows_give_each_other() -> None:
    taps = drawn_taps(rows=42, keep=16, relay=None)
    same(taps, reference(taps, 14, 2, seen=seen_by_tokens(taps, taps.layers[-1])))


@pytest.mark.parametrize(
    ("layers", "keep", "contextual"), [(8, 21, 3), (16, 13, 2), (24, 19, 3), (9, 21, 3)]
)
def test_a_decoder_reads_visual_queries_of_the_layer_behind_the_cut(
    layers: int, keep: int, contextual: int
) -> None:
    taps = drawn_taps("decoder", rows=40, keep=keep, layers=layers)
    taps = dataclasses.replace(taps, layer_count=32)
    behind = drawn_taps("decoder", rows=40, layers=1, seed=5).layers[0]
    for ahead, layer in ((behind, behind), (None, taps.layers[-1])):
        now = dataclasses.replace(taps, ahead=ahead)
        seen = seen_by_tokens(now, layer)
        same(now, reference(now, keep - contextual, contextual, layer, seen))


def test_the_published_setting() -> None:
    """Of 576: 48 into the decoder, then 35, 26 and 19; 32 in the mean of four quarters."""
    setting = Setting("decoder", 32, 576, 19, consumer=True)
    assert tower_rows(setting) == 48
    assert METHOD.schedule(setting) == (Placement(8, 35), Placement(16, 26), Placement(24, 19))
    assert METHOD.schedule(Setting("vision", 23, 576, 48)) == (Placement(23, 48),)
    assert tower_rows(Setting("decoder", 32, 576, 576)) == 576


def test_a_budget_pays_for_the_stages_of_both_stacks() -> None:
    """36 rows in 4 layers: 28, 20, 14 and 10 are half of them."""
    found = fit(analysed("llava").facts, METHOD, 0.5)
    stages = [(stage.site, stage.keep) for stage in found.plan.stages]
    assert stages == [("vision:end", 28), ("decoder:1", 20), ("decoder:2", 14), ("decoder:3", 10)]
    assert found.spent == 0.5 and not found.note
    assert all("stacks" not in stage.options for stage in found.plan.stages)
    alone = fit(analysed("llava").facts, METHOD, 0.5, options={"stacks": "one"})
    assert [(s.site, s.keep) for s in alone.plan.stages] == [("vision:end", 18)]
    with pytest.raises(InputError, match="stacks = 'three'"):
        fit(analysed("llava").facts, METHOD, 0.5, options={"stacks": "three"})


def test_where_the_towers_rows_leave_in_groups_its_stage_is_left_out_and_named() -> None:
    found = fit(analysed("qwen").facts, METHOD, 0.5)
    assert [s.site for s in found.plan.stages] == ["decoder:1", "decoder:2", "decoder:3"]
    assert "without its stage in the tower" in found.note and "groups of 4" in found.note


def test_stages_in_both_stacks_pass_every_gate() -> None:
    family = analysed("llava")
    text = "vision:end visiondrop 24, decoder:1 visiondrop 18, decoder:3 visiondrop 12"
    assert failures(checked(family, plan(text)), [every_input(family)[0]]) == ""


def test_the_score_is_the_library_s_attention_among_visual_rows() -> None:
    family = analysed("llava")
    found = run_oracle(
        family.facts, plan("decoder:2 visiondrop 36"), every_input(family)[0], find_method
    ).stages[0]
    layer, visual = truth().decoder[2].mean(1), truth().visual
    for item in range(2):
        expected = layer[item][visual[item]].mean(0)[visual[item]]
        raw = found.raw[item][visual[item]].numpy()
        np.testing.assert_allclose(raw - np.floor(raw), expected, rtol=1e-3, atol=1e-6)
