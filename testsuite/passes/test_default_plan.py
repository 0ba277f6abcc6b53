import pytest
from testsuite.passes.analysed import analysed

from tokopt.ir.errors import BudgetError, InputError
from tokopt.passes.budget import spent
from tokopt.passes.default_plan import default_fit, default_plan


def chosen(model: str, budget: float) -> list[tuple[str, str]]:
    plan = default_plan(analysed(model).facts, budget)
    return [(stage.method, stage.site) for stage in plan.stages]


def test_a_tower_with_class_token_and_a_decoder_get_vtc_cls_at_the_end() -> None:
    assert chosen("llava", 0.25) == [("vtc_cls", "vision:end")]


def test_a_tower_without_class_token_is_cut_at_its_end_by_variety() -> None:
    assert chosen("qwen", 0.5) == [("divprune", "vision:end")]


def test_a_tower_alone_gets_flowcut_with_or_without_class_token() -> None:
    for model in ("handvit", "random1"):
        assert {method for method, _ in chosen(model, 0.8)} == {"flowcut"}


def test_where_no_attention_based_cut_reaches_the_budget_stride_does() -> None:
    assert chosen("handvit", 0.1) == [("stride", "vision:0")]


def test_a_named_method_is_taken_or_refused_never_replaced() -> None:
    facts = analysed("llava").facts
    assert default_plan(facts, 0.5, "fastv").stages[0].method == "fastv"
    with pytest.raises(BudgetError):
        default_plan(facts, 0.1, "fastv")
    with pytest.raises(InputError, match="no method 'fastw'"):
        default_plan(facts, 0.1, "fastw")


def test_it_says_what_it_spends_and_records_seed_and_budget() -> None:
    facts = analysed("llava").facts
    fitted = default_fit(facts, 0.3, seed=4)
    assert fitted.spent == spent(facts, fitted.plan)
    assert (fitted.plan.seed, fitted.plan.budget) == (4, 0.3)


def test_a_bad_budget_is_an_input_error_not_a_fallback() -> None:
    with pytest.raises(InputError):
        default_plan(analysed("llava").facts, 1.5)
