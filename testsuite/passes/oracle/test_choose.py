import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.oracle.choose import choose, choose_rows, groups_of, over_groups

NAN, INF = float("nan"), float("inf")


def rows(first: int, count: int, group: int) -> Tensor:
    return groups_of([count // group, group], [False, True], first)


def test_ties_go_to_the_lower_index() -> None:
    score = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert choose(score, torch.ones(1, 5, dtype=torch.bool), [2]).tolist()[0] == [0, 1, 1, 0, 0]


def test_what_is_no_candidate_stays_whatever_its_score() -> None:
    score, free = torch.tensor([[-INF, 5.0, 1.0, 9.0]]), torch.tensor([[False, True, True, True]])
    assert choose(score, free, [1]).tolist()[0] == [1, 0, 0, 1]


def test_items_choose_for_themselves_and_may_have_other_quotas() -> None:
    score = torch.tensor([[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]])
    found = choose(score, torch.ones(2, 3, dtype=torch.bool), [1, 2])
    assert found.tolist() == [[1, 0, 0], [0, 1, 1]]


def test_a_nan_score_is_the_worst() -> None:
    score = over_groups(torch.tensor([[NAN, -9.0, NAN, 1.0]]), rows(0, 4, 1))
    assert choose(score, torch.ones(1, 4, dtype=torch.bool), [3]).tolist()[0] == [1, 1, 0, 1]


def test_groups_behind_a_prefix_go_and_stay_as_a_whole_by_their_mean() -> None:
    layout = rows(1, 6, 2)
    score = over_groups(torch.tensor([[0.0, 9.0, 0.0, 5.0, 5.0, 1.0, 1.0]]), layout)
    assert score.tolist() == [[0.0, 4.5, 4.5, 5.0, 5.0, 1.0, 1.0]]
    free = torch.tensor([[False] + [True] * 6])
    assert choose_rows(score, free, layout, [2]).tolist()[0] == [1, 0, 0, 1, 1, 0, 0]


def test_more_than_there_are_cannot_stay() -> None:
    with pytest.raises(InputError, match="3 of 2"):
        choose(torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool), [3])


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=1, max_size=9), st.data())
def test_nothing_that_goes_is_better_than_what_stays(score: list[float], data: DataObject) -> None:
    free = data.draw(st.lists(st.booleans(), min_size=len(score), max_size=len(score)))
    quota = data.draw(st.integers(0, sum(free)))
    stay = choose(torch.tensor([score]), torch.tensor([free]), [quota])[0].tolist()
    kept = [(-score[i], i) for i in range(len(score)) if free[i] and stay[i]]
    gone = [(-score[i], i) for i in range(len(score)) if not stay[i]]
    assert len(kept) == quota and all(free[i] for _, i in gone)
    assert not kept or not gone or max(kept) < min(gone)
