"""DELTA's choice of pages, against numbers worked by hand from the paper's formula."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokopt.ir.errors import InputError
from tokopt.passes.sparse_decode.pages import Pages, chosen_pages, row_scores, rows_of


def test_a_page_scores_the_sum_of_its_rows_and_the_last_ones_always_stay() -> None:
    scores = torch.tensor([[0.1, 0.0, 0.3, 0.3, 0.2, 0.0, 0.0, 0.05, 0.01]])  # pages of 2 rows
    # pages: .1, .6, .2, .05, .01 (half full): 1 is best, 4 is the last
    assert chosen_pages(scores, Pages(2, 2, 1)).tolist() == [[1, 4]]
    assert chosen_pages(scores, Pages(2, 3, 1)).tolist() == [[1, 2, 4]]
    assert chosen_pages(scores, Pages(2, 3, 2)).tolist() == [[1, 3, 4]]
    assert chosen_pages(scores, Pages(2, 3, 3)).tolist() == [[2, 3, 4]]


def test_ties_go_to_the_lower_page_and_each_item_has_its_own() -> None:
    scores = torch.tensor([[0.2, 0.2, 0.2, 0.2, 0.2], [0.0, 0.0, 0.5, 0.5, 0.0]])
    assert chosen_pages(scores, Pages(1, 3, 1)).tolist() == [[0, 1, 4], [2, 3, 4]]


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8])
def test_a_cache_with_fewer_pages_keeps_all_and_numbers_behind_its_end_fill_up(rows: int) -> None:
    chosen = chosen_pages(torch.rand(2, rows), Pages(2, 4, 2))
    assert chosen.tolist() == [[0, 1, 2, 3]] * 2
    assert rows_of(chosen, 2).tolist() == [list(range(8))] * 2


def test_a_row_scores_its_largest_probability_over_all_heads() -> None:
    """Four heads on two of the cache; one mask of bools, one of summands, one row unseen."""
    draw = np.random.default_rng(0)
    query, keys = draw.normal(size=(2, 4, 1, 6)), draw.normal(size=(2, 2, 5, 6))
    read = np.array([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1]], bool)
    wanted = np.zeros((2, 5))
    for item in range(2):
        for head in range(4):
            logits = [query[item, head, 0] @ keys[item, head // 2, t] * 0.3 for t in range(5)]
            parts = [math.exp(x) * seen for x, seen in zip(logits, read[item], strict=True)]
            found = np.array(parts) / sum(parts)
            wanted[item] = np.maximum(wanted[item], found)
    given = (torch.tensor(query).float(), torch.tensor(keys).float())
    mask = torch.tensor(read)[:, None, None]
    bias = torch.zeros(mask.shape).masked_fill(~mask, float("-inf"))
    for one in (mask, bias, bias.expand(2, 4, 1, 5)):
        got = row_scores(*given, one, 0.3)
        assert got.dtype == torch.float32
        assert np.allclose(got.numpy(), wanted, atol=1e-6)


@pytest.mark.parametrize("numbers", [(0, 4, 1), (16, 4, 5), (16, 4, 0)])
def test_numbers_that_fit_no_cache_are_refused(numbers: tuple[int, int, int]) -> None:
    with pytest.raises(InputError, match="recent ≤ pages"):
        Pages(*numbers)
