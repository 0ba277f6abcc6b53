import pytest
import torch
from torch import Tensor

from tokopt.ir.plan import Stage
from tokopt.passes.oracle.compare import compare_outputs, compare_selection
from tokopt.passes.oracle.oracle import OracleResult
from tokopt.passes.oracle.placed import Choice, Pool

NAN = float("nan")


def result(keep: int, scores: list[float], group: int = 1) -> OracleResult:
    """Return a result of one stage on one item: row 0 is fixed, NaN scores are rows gone before."""
    values = torch.tensor([scores])
    free = ~values.isnan()
    free[0, 0] = False
    order = sorted(free[0].nonzero().flatten().tolist(), key=lambda i: (-scores[i], i))
    alive = ~values.isnan() & ~free
    alive[0, order[:keep]] = True
    table = torch.arange(1, 1 + (len(scores) - 1) // group * group).unflatten(0, (-1, group))
    choice = Choice(
        Stage("s:1", "m", keep), table, alive, free, values, values, ((Pool(free[0], keep),),)
    )
    return OracleResult({}, (choice,))


def rows(count: int, *alive: int) -> list[Tensor]:
    return [torch.zeros(1, count, dtype=torch.bool).index_fill(1, torch.tensor(alive), True)]


SCORES = [9.0, 4.0, 3.0, 2.0, 1.0]


def test_the_oracles_own_choice_has_nothing_wrong() -> None:
    oracle = result(2, SCORES)
    assert compare_selection(oracle, oracle.alive, 0.0) == []


def test_a_worse_row_that_was_kept_is_told_with_its_score_and_the_threshold() -> None:
    (line,) = compare_selection(result(2, SCORES), rows(5, 0, 1, 3), 1e-3)
    assert line == "stage 0 (m at s:1), item 0: row 3 was kept: score 2, threshold 3"


def test_a_better_row_that_was_dropped_is_told() -> None:
    lines = compare_selection(result(2, SCORES), rows(5, 0, 2, 3), 1e-3)
    told = [line.split(": ")[1] for line in lines]
    assert told == ["row 1 was dropped", "row 3 was kept"]


def test_rows_nearer_than_epsilon_to_the_threshold_may_change_places() -> None:
    oracle, swapped = result(2, [9.0, 4.0, 3.00001, 3.0, 1.0]), rows(5, 0, 1, 3)
    assert compare_selection(oracle, swapped, 1e-4) == []
    assert len(compare_selection(oracle, swapped, 1e-7)) == 1


def test_an_exact_tie_is_free_unless_nothing_is() -> None:
    oracle, swapped = result(2, [9.0, 4.0, 3.0, 3.0, 1.0]), rows(5, 0, 1, 3)
    assert compare_selection(oracle, swapped, 1e-6) == []
    assert len(compare_selection(oracle, swapped, 0.0)) == 2


@pytest.mark.parametrize(
    ("alive", "what"),
    [
        ((1, 2), "row 0 is no candidate and was dropped"),
        ((0, 1), "1 candidates stay, expected 2"),
        ((0, 1, 2, 3), "3 candidates stay, expected 2"),
    ],
)
def test_protected_rows_and_counts_are_exact(alive: tuple[int, ...], what: str) -> None:
    assert any(what in line for line in compare_selection(result(2, SCORES), rows(5, *alive), 1.0))


def test_a_row_an_earlier_stage_dropped_must_not_come_back() -> None:
    lines = compare_selection(result(1, [9.0, NAN, 3.0, 2.0]), rows(4, 0, 1), 1.0)
    assert any("row 1 came back" in line for line in lines)


def test_a_group_must_not_be_torn_apart_even_at_a_tie() -> None:
    oracle = result(2, [9.0, 3.0, 3.0, 3.0, 3.0], group=2)
    assert compare_selection(oracle, rows(5, 0, 3, 4), 1e-6) == []
    lines = compare_selection(oracle, rows(5, 0, 2, 3), 1e-6)
    told = [line.split(": ", 1)[1] for line in lines]
    assert told == [f"the group of rows from {row} on was torn apart" for row in (1, 3)]


def test_another_shape_or_number_of_stages_is_told() -> None:
    oracle = result(2, SCORES)
    assert "rows (1, 4), expected (1, 5)" in compare_selection(oracle, rows(4, 0), 1.0)[0]
    assert compare_selection(oracle, [], 1.0) == ["0 choices for 1 stages"]


WANT = torch.tensor([[1.0, -10.0], [NAN, NAN], [2.0, 3.0]])


def filled(fill: float = 0.0) -> Tensor:
    return WANT.nan_to_num(nan=fill)


def test_outputs_that_agree_have_no_difference() -> None:
    assert compare_outputs({"y": WANT}, {"y": filled() + 1e-6 * (filled() != 0)}, 1e-6) is None
    assert compare_outputs({"y": WANT}, {"y": filled(7.0)}, 1e-6, fill=7.0) is None


def test_the_first_wrong_value_is_named_relative_to_the_largest() -> None:
    found = filled()
    found[2] += torch.tensor([0.5, 1.0])
    wrong = compare_outputs({"y": WANT}, {"y": found}, 1e-3)
    assert wrong is not None and (wrong.index, wrong.count) == ((2, 0), 2)
    assert (wrong.expected, wrong.found) == (2.0, 2.5) and abs(wrong.error - 0.05) < 1e-9
    assert compare_outputs({"y": WANT}, {"y": found}, 0.11) is None
    assert "output 'y' at [2, 0]" in str(wrong) and "off by 0.05" in str(wrong)


def test_a_dropped_row_that_is_not_filled_is_wrong() -> None:
    wrong = compare_outputs({"y": WANT}, {"y": filled(0.1)}, 1.0)
    assert wrong is not None and wrong.index == (1, 0) and "dropped row" in wrong.what


def test_nan_where_a_number_is_expected_is_wrong() -> None:
    found = filled()
    found[0, 1] = NAN
    wrong = compare_outputs({"y": WANT}, {"y": found}, 1.0)
    assert wrong is not None and wrong.index == (0, 1)


def test_a_shorter_output_must_hold_the_values_that_are_left_in_order() -> None:
    left = torch.tensor([[1.0, -10.0], [2.0, 3.0]])
    assert compare_outputs({"y": WANT}, {"y": left}, 1e-6) is None
    wrong = compare_outputs({"y": WANT}, {"y": left.flip(0)}, 1e-6)
    assert wrong is not None and wrong.index == (0, 0)
    cache = torch.randn(2, 3, 4, 5)
    cache[0, :, 1], cache[1, :, 2] = NAN, NAN
    short = torch.stack([cache[0][:, [0, 2, 3]], cache[1][:, [0, 1, 3]]])
    assert compare_outputs({"k": cache}, {"k": short}, 1e-6) is None
    assert compare_outputs({"k": cache}, {"k": short.flip(0)}, 1e-6) is not None


def test_a_missing_output_and_an_impossible_shape_are_told() -> None:
    assert "is missing" in str(compare_outputs({"y": WANT}, {}, 1.0))
    assert "has shape (2, 1)" in str(compare_outputs({"y": WANT}, {"y": WANT[:2, :1]}, 1.0))


def test_infinities_agree_with_themselves_alone() -> None:
    want = torch.tensor([1.0, float("inf")])
    assert compare_outputs({"y": want}, {"y": want.clone()}, 0.0) is None
    assert compare_outputs({"y": want}, {"y": -want}, 1e9) is not None
