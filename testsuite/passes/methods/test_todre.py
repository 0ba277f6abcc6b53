import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan
from testsuite.passes.methods.chosen import greedily, items, order_of, with_rows
from testsuite.passes.methods.drawn_taps import PREFIX, draw, drawn_taps
from testsuite.passes.methods.test_hired import H, W, tiled

from tokopt.passes.methods.todre import METHOD


def reference(rows: np.ndarray, candidates: list[int], steps: int, pivot: int) -> list[int]:
    square = rows @ rows.T

    def gain(chosen: list[int], row: int) -> float:
        return -float(square[row, chosen].sum()) if chosen else float(row == pivot)

    return greedily(gain, candidates, steps)


def unlike_all(rows: np.ndarray, candidates: list[int]) -> int:
    square = rows @ rows.T
    return min(candidates, key=lambda row: float(square[row, candidates].sum()))


@pytest.mark.parametrize("keep", [1, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_each_next_token_is_least_like_the_sum_of_those_chosen(keep: int, seed: int) -> None:
    taps = dataclasses.replace(drawn_taps("decoder", keep=keep, seed=seed), tower=None)
    expected = [reference(*item, keep, unlike_all(*item)) for item in items(taps)]
    assert order_of(METHOD.score(taps)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_a_tower_starts_at_the_class_tokens_favourite(seed: int) -> None:
    taps = drawn_taps("vision", keep=5, seed=seed)
    seen = taps.layers[-1].row(0).mean(1).numpy()
    expected = []
    for attention, (rows, candidates) in zip(seen, items(taps), strict=True):
        pivot = max(candidates, key=lambda row: attention[row])
        expected.append(reference(rows, candidates, 5, pivot))
    assert order_of(METHOD.score(taps)) == expected


def test_a_sum_is_not_a_nearest_neighbour() -> None:
    """East is chosen, then west; now the sum is zero for all, and the lower row is next.

    Farthest-first would take north (row 3) before the one beside east (row 1).
    """
    rows = [[1.0, 0.0], [0.8, 0.6], [-1.0, 0.0], [0.0, 1.0]]
    taps = drawn_taps("vision", batch=1, rows=4, keep=3, layers=1)
    layer = dataclasses.replace(
        taps.layers[0], row=lambda number: torch.tensor([[[0.7, 0.1, 0.1, 0.1]]])
    )
    whole = dataclasses.replace(with_rows(rows, 3), layers=[layer], relay=0)
    assert order_of(METHOD.score(whole)) == [[0, 2, 1]]


@pytest.mark.parametrize("seed", range(4))
def test_a_decoder_starts_at_the_favourite_of_the_towers_class_token(seed: int) -> None:
    taps = drawn_taps("decoder", keep=5, seed=seed)
    assert taps.tower is not None
    seen = taps.tower.layer.row(0).mean(1)[:, PREFIX:].numpy()
    expected = []
    for attention, (rows, candidates) in zip(seen, items(taps), strict=True):
        pivot = candidates[int(np.argmax(attention))]
        expected.append(reference(rows, candidates, 5, pivot))
    assert order_of(METHOD.score(taps)) == expected


def test_the_first_is_one_of_the_whole_picture_where_there_are_tiles() -> None:
    taps = tiled(1, 2, 5)
    assert taps.tower is not None and taps.places is not None
    hidden = draw(2, taps.candidates.shape[1], 6, seed=1)
    found = order_of(METHOD.score(dataclasses.replace(taps, hidden=hidden)))
    seen = taps.tower.layer.row(0).mean(1)[:, PREFIX:].reshape(2, -1)
    whole = seen[:, : H * W].argmax(1) + 1
    assert [rows[0] for rows in found] == whole.tolist()
    assert not torch.equal(seen.argmax(1) + 1, whole)


def test_a_stage_in_the_tower_leaves_it_without_pivot_and_it_goes_on() -> None:
    family = analysed("llava")
    for text in ("decoder:0 todre 9", "vision:1 stride 18, decoder:0 todre 9"):
        assert failures(checked(family, plan(text)), [every_input(family)[0]]) == ""
