import dataclasses
from fractions import Fraction

import pytest
import sympy
from testsuite.passes.analysed import analysed

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.budget import rows_after, spent, tower_rows, visual_rows


def plan(*stages: tuple[str, int]) -> Plan:
    return Plan(tuple(Stage(site, "random", keep) for site, keep in stages))


@pytest.mark.parametrize(
    ("stages", "rows", "number"),
    [
        ((), (36, 36, 36, 36), Fraction(1)),
        ((("decoder:1", 9),), (36, 9, 9, 9), Fraction(7, 16)),
        ((("decoder:0", 9),), (9, 9, 9, 9), Fraction(1, 4)),
        ((("decoder:1", 18), ("decoder:3", 6)), (36, 18, 18, 6), Fraction(78, 144)),
        ((("vision:end", 9),), (9, 9, 9, 9), Fraction(1, 4)),
        ((("vision:1", 9),), (9, 9, 9, 9), Fraction(1, 4)),
        ((("vision:1", 20), ("vision:end", 12), ("decoder:2", 4)), (12, 12, 4, 4), Fraction(2, 9)),
        ((("decoder:3", 36),), (36, 36, 36, 36), Fraction(1)),
    ],
)
def test_llava_with_36_visual_tokens_and_four_decoder_layers(
    stages: tuple[tuple[str, int], ...], rows: tuple[int, ...], number: Fraction
) -> None:
    facts = analysed("llava").facts
    assert visual_rows(facts, plan(*stages)) == rows
    assert spent(facts, plan(*stages)) == number


def test_the_order_in_which_a_plan_lists_its_stages_does_not_matter() -> None:
    facts = analysed("llava").facts
    stages = (("decoder:2", 4), ("vision:end", 12), ("vision:1", 20))
    assert visual_rows(facts, plan(*stages)) == (12, 12, 4, 4)
    assert tower_rows(facts, plan(*stages)) == {"vision": (36, 20, 20)}


def test_tower_tokens_are_listed_apart() -> None:
    facts = analysed("llava").facts
    stages = (("vision:1", 20), ("vision:2", 12), ("decoder:2", 4))
    assert tower_rows(facts, plan(*stages)) == {"vision": (36, 20, 12)}
    assert tower_rows(facts, plan(("vision:end", 9))) == {"vision": (36, 36, 36)}


def test_a_tower_alone_is_its_own_consumer() -> None:
    facts = analysed("handvit").facts
    assert visual_rows(facts, plan(("vision:1", 18), ("vision:3", 9))) == (36, 18, 18, 9)
    assert spent(facts, plan(("vision:1", 18), ("vision:3", 9))) == Fraction(81, 144)
    assert spent(facts, plan(("vision:end", 9))) == 1  # nothing comes after: nothing is saved
    assert tower_rows(facts, plan(("vision:1", 18))) == {}


def test_protected_rows_are_not_counted() -> None:
    """DINOv2 has a class row and four registers beside its 36 patches."""
    assert visual_rows(analysed("dino").facts, plan(("vision:2", 10))) == (36, 36, 10, 10)


def test_a_free_batch_and_prompt_length_do_not_matter() -> None:
    facts = analysed("llava_dynamic").facts
    assert spent(facts, plan(("decoder:1", 9))) == Fraction(7, 16)


@pytest.mark.parametrize(
    ("stages", "text"),
    [
        ((("decoder:1", 9), ("decoder:2", 10)), "10 visual rows are to stay"),
        ((("decoder:2", 9), ("decoder:1", 8)), "9 visual rows are to stay"),
        ((("decoder:1", 9), ("decoder:1", 8)), "two stages are placed at decoder:1"),
        ((("decoder:1", 9), ("vision:end", 8)), "9 visual rows are to stay"),
        ((("vision:end", 9), ("decoder:1", 10)), "10 visual rows are to stay"),
        ((("decoder:1", 37),), "keep = 37"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(stages: tuple[tuple[str, int], ...], text: str) -> None:
    with pytest.raises(InputError, match=text):
        visual_rows(analysed("llava").facts, plan(*stages))


def test_qwen_merges_four_patches_into_one_row() -> None:
    """96 patches, 24 merged rows: 32 patches kept are 8 rows from layer 0 on."""
    facts = analysed("qwen").facts
    assert visual_rows(facts, plan(("vision:end", 32))) == (8, 8, 8, 8)
    assert spent(facts, plan(("vision:end", 32), ("decoder:2", 4))) == Fraction(24, 96)
    assert tower_rows(facts, plan(("vision:3", 32))) == {"vision": (96, 96, 96, 32)}
    with pytest.raises(InputError, match="keep = 30"):
        visual_rows(facts, plan(("vision:end", 30)))


def test_a_stage_that_breaks_a_group_is_refused() -> None:
    with pytest.raises(InputError, match="keep = 10") as error:  # 2½ groups
        visual_rows(analysed("qwen").facts, plan(("vision:end", 10)))
    assert "a multiple of 4" in str(error.value)


def test_a_tower_whose_rows_do_not_reach_the_merge_saves_the_decoder_nothing() -> None:
    facts = analysed("llava").facts
    tower, decoder = facts.stacks
    assert decoder.merge is not None
    ids = facts.exported.graph.find_nodes(op="placeholder")[-1]  # depends on no pixel
    merge = dataclasses.replace(decoder.merge, node=ids, source=ids)
    apart = dataclasses.replace(decoder, merge=merge)
    with pytest.raises(UnsupportedError, match="vision:1 does not shorten decoder"):
        spent(dataclasses.replace(facts, stacks=(tower, apart)), plan(("vision:1", 9)))


def test_a_count_known_only_at_run_time_is_refused() -> None:
    facts = analysed("llava").facts
    tower, decoder = facts.stacks
    free = dataclasses.replace(decoder, count=sympy.Symbol("s7"))
    with pytest.raises(UnsupportedError, match="only known at run time"):
        spent(dataclasses.replace(facts, stacks=(tower, free)), plan(("decoder:1", 9)))


def test_an_unknown_site_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnsupportedError, match="no site 'decoder:9'") as error:
        spent(analysed("llava").facts, plan(("decoder:9", 4)))
    assert "vision:end" in str(error.value)


def test_rows_of_layers_by_hand() -> None:
    assert rows_after(10, 4, []) == (10, 10, 10, 10)
    assert rows_after(10, 4, [(1, 5), (3, 2)]) == (10, 5, 5, 2)
    assert rows_after(10, 4, [(0, 5), (0, 4)]) == (4, 4, 4, 4)
    assert rows_after(10, 4, [(4, 1)]) == (10, 10, 10, 10)
