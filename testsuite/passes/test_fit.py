from fractions import Fraction

import pytest
from testsuite.passes.analysed import analysed
from testsuite.passes.changed_facts import barred

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.passes.budget import row_count, spent
from tokopt.passes.fit import fit
from tokopt.passes.methods.registry import METHODS, find_method

MODELS = ["llava", "llava_dynamic", "qwen", "dino", "handvit", "random1", "random4"]
BUDGETS = [0.03, 0.1, 0.25, 0.3, 0.5, 0.7, 0.999, 1.0]


def stages(model: str, method: str, budget: float, **more) -> list[tuple[str, int]]:  # type: ignore[no-untyped-def]
    found = fit(analysed(model).facts, find_method(method), budget, **more)
    return [(stage.site, stage.keep) for stage in found.plan.stages]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
def test_a_fitted_plan_spends_at_most_the_budget_and_is_within_one_token_of_it(
    model: str, method: str
) -> None:
    facts = analysed(model).facts
    total = row_count(facts.consumer)
    met = 0
    for budget in BUDGETS:
        try:
            fitted = fit(facts, find_method(method), budget)
        except (UnsupportedError, BudgetError):
            continue
        limit = Fraction(str(budget))
        assert fitted.spent == spent(facts, fitted.plan) <= limit
        assert (limit - fitted.spent) * total <= 1
        assert fitted.plan.budget == budget
        met += 1
    chosen = METHODS[method]
    needs_more = chosen.needs & {"relay", "places"} or chosen.roles in ({"decoder"}, {"text"})
    folds_single_rows = chosen.combine is not None and chosen.roles == {"vision"}
    assert met or needs_more or (folds_single_rows and model == "qwen")


def test_a_tower_stage_keeps_the_budget_of_the_decoder() -> None:
    assert stages("llava", "vtc_cls", 0.25) == [("vision:end", 9)]
    assert stages("llava", "vtc_cls", 0.27) == [("vision:end", 9)]
    assert stages("llava", "vtc_cls", 1.0) == [("vision:end", 36)]


def test_a_decoder_stage_pays_for_the_layers_before_it() -> None:
    """Entering layer 1 of 4 with 36 tokens: (36 + 3 K) / 144."""
    assert stages("llava", "fastv", 0.5) == [("decoder:1", 12)]
    assert stages("llava", "fastv", 0.3) == [("decoder:1", 2)]


def test_a_budget_is_the_decimal_number_that_was_written() -> None:
    """3/5 of 25 tokens is 15, though the nearest binary fraction to 0.6 lies below it."""
    assert Fraction(0.6) < Fraction(3, 5)
    assert stages("random1", "stride", 0.6) == [("vision:0", 15)]


def test_a_budget_out_of_reach_names_the_smallest_that_is_not() -> None:
    with pytest.raises(BudgetError, match=r"cannot meet the budget 0\.25") as error:
        fit(analysed("llava").facts, find_method("fastv"), 0.25)
    assert "0.2708" in str(error.value) and "13/48" in str(error.value)  # (36 + 3) / 144
    assert stages("llava", "fastv", 0.271) == [("decoder:1", 1)]


def test_a_stage_at_the_end_of_a_lone_tower_moves_forward() -> None:
    """At the end it saves nothing; entering layer 1 of 4 it spends (36 + 3 K) / 144."""
    fitted = fit(analysed("handvit").facts, find_method("vtc_cls"), 0.5)
    assert [(s.site, s.keep) for s in fitted.plan.stages] == [("vision:1", 12)]
    assert fitted.spent == Fraction(1, 2)
    assert fitted.note == (
        "vtc_cls moved from vision:end to vision:1: where it is published, the least it can spend "
        "is 1, more than the budget 0.5"
    )


def test_it_moves_no_further_than_needed() -> None:
    """Entering layer 3 of 4: (3 · 36 + K) / 144 = 0.8 where K = 7.2."""
    assert stages("handvit", "vtc_cls", 0.8) == [("vision:3", 7)]
    assert stages("handvit", "vtc_cls", 0.75) == [("vision:2", 18)]  # layer 3 spends 109/144


def test_sites_move_by_one_common_factor() -> None:
    """Published for 4 layers: 1, 2, 3.  By 2/3: 1, 1, 2; by 1/3: all at 1, the last count holds."""
    facts = analysed("handvit").facts
    assert stages("handvit", "flowcut", 0.7) == [
        ("vision:1", 33),
        ("vision:2", 27),
        ("vision:3", 4),
    ]
    assert stages("handvit", "flowcut", 0.6) == [("vision:1", 29), ("vision:2", 10)]
    assert stages("handvit", "flowcut", 0.3) == [("vision:1", 2)]
    plain, some, all_ = (fit(facts, find_method("flowcut"), b).note for b in (0.7, 0.6, 0.3))
    assert plain.startswith("flowcut is not calibrated: ") and "moved" not in plain
    published = "flowcut moved from vision:1, vision:2, vision:3 to"
    assert some.startswith(f"{published} vision:1, vision:2: ") and some.endswith(f"; {plain}")
    assert all_.startswith(f"{published} vision:1: ")


def test_entropies_given_are_used_and_noted_when_missing() -> None:
    facts = analysed("llava").facts
    plain = fit(facts, find_method("flowcut"), 0.25)
    assert "not calibrated" in plain.note
    measured = analysed("llava").observed().entropies
    calibrated = fit(facts, find_method("flowcut"), 0.25, measured)
    assert calibrated.note == ""
    assert calibrated.plan.stages[-1].keep == plain.plan.stages[-1].keep == 9
    focused = fit(facts, find_method("flowcut"), 0.25, {"vision": [0.0, 0.0, 0.0]})
    assert focused.plan.stages[0].keep < plain.plan.stages[0].keep
    with pytest.raises(InputError, match="2 entropies are given for vision"):
        fit(facts, find_method("flowcut"), 0.25, {"vision": [0.9, 0.9]})


def test_in_the_decoder_flowcut_has_nothing_to_calibrate() -> None:
    fitted = fit(analysed("llava").facts, find_method("flowcut"), 0.5, role="decoder")
    assert fitted.note == "" and fitted.plan.stages[0].site == "decoder:1"


def test_controls_sit_where_methods_are_compared() -> None:
    assert stages("llava", "random", 0.25) == [("vision:end", 9)]
    assert stages("llava", "stride", 0.25, role="decoder") == [("decoder:0", 9)]
    assert stages("handvit", "stride", 0.25) == [("vision:0", 9)]


def test_a_seed_and_options_are_written_into_the_plan() -> None:
    facts = analysed("llava").facts
    fitted = fit(facts, find_method("vtc_cls"), 0.25, seed=7, options={"start": 1})
    assert fitted.plan.seed == 7 and fitted.plan.stages[0].options == {"start": 1}


def test_what_a_method_lacks_is_said_with_a_way_out() -> None:
    with pytest.raises(UnsupportedError, match="needs a relay row") as error:
        fit(analysed("random1").facts, find_method("vtc_cls"), 0.5)
    assert "divprune" in str(error.value)
    with pytest.raises(UnsupportedError, match="fastv has no stack"):
        fit(analysed("handvit").facts, find_method("fastv"), 0.5)
    with pytest.raises(UnsupportedError, match="not made for vision"):
        fit(analysed("llava").facts, find_method("fastv"), 0.5, role="vision")
    with pytest.raises(InputError, match="no stack 'encoder'"):
        fit(analysed("llava").facts, find_method("fastv"), 0.5, role="encoder")


def test_groups_leave_whole_and_stand_for_one_merged_row() -> None:
    """In Qwen's tower four patches become one row of the decoder, 96 patches 24 rows."""
    facts = analysed("qwen").facts
    fitted = fit(facts, find_method("stride"), 0.4)  # 9.6 of 24 rows
    assert fitted.plan.stages[-1].keep == 36 and fitted.spent == Fraction(9, 24)
    with pytest.raises(BudgetError, match="cannot meet") as error:
        fit(facts, find_method("stride"), 0.03)
    assert "1/24" in str(error.value)


def test_in_qwen_a_control_keeps_whole_groups_and_flowcut_goes_where_it_is_legal() -> None:
    """In the tower's windowed layers rows leave by windows, behind them in 24 groups of 4."""
    assert stages("qwen", "stride", 0.4) == [("vision:end", 36)]  # 9 of 24 rows
    assert stages("qwen", "flowcut", 0.5) == [("decoder:1", 8)]
    with pytest.raises(UnsupportedError, match="flowcut cannot be placed at vision:1") as error:
        fit(analysed("qwen").facts, find_method("flowcut"), 0.5, role="vision")
    assert "vision:3, vision:end" in str(error.value)


def test_an_illegal_site_is_named_with_its_barrier_and_the_sites_that_remain() -> None:
    facts = barred(analysed("llava").facts, "vision:end")
    with pytest.raises(UnsupportedError) as error:
        fit(facts, find_method("vtc_cls"), 0.25)
    text = str(error.value)
    assert "vision:end" in text and "mixes rows of a window" in text
    assert "vision:0, vision:1, vision:2" in text
    elsewhere = fit(facts, find_method("random"), 0.25).plan.stages[0]
    assert elsewhere.site == "decoder:0"  # the next stack in which it is legal


def test_a_stage_does_not_move_to_an_illegal_site() -> None:
    assert stages("handvit", "vtc_cls", 0.8) == [("vision:3", 7)]
    facts = barred(analysed("handvit").facts, "vision:3")
    fitted = fit(facts, find_method("vtc_cls"), 0.8)
    assert [(s.site, s.keep) for s in fitted.plan.stages] == [("vision:2", 21)]


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.01, float("nan"), float("inf")])
def test_a_budget_is_above_zero_and_at_most_one(budget: float) -> None:
    with pytest.raises(InputError, match="budget ="):
        fit(analysed("llava").facts, find_method("vtc_cls"), budget)
