import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.methods.chosen import greedily, items, order_of, with_rows
from testsuite.passes.methods.drawn_taps import draw, drawn_taps

from tokopt.passes.methods.divprune import METHOD


def reference(rows: np.ndarray, candidates: list[int], steps: int) -> list[int]:
    """Distances one by one: the first by its nearest other, the next by their nearest chosen."""

    def nearest(chosen: list[int], row: int) -> float:
        others = chosen or [other for other in candidates if other != row]
        return min(1 - float(rows[row] @ rows[other]) for other in others)

    return greedily(nearest, candidates, steps)


@pytest.mark.parametrize("role", ["vision", "decoder"])
@pytest.mark.parametrize("keep", [1, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_chosen_farthest_first(role: str, keep: int, seed: int) -> None:
    taps = drawn_taps(role, keep=keep, seed=seed, batch=2)
    expected = [reference(*item, keep) for item in items(taps)]
    assert order_of(METHOD.score(taps)) == expected


def test_more_rows_than_one_block_has() -> None:
    """140 rows: three blocks, the last one short."""
    taps = drawn_taps(rows=140, keep=9, layers=0)
    expected = [reference(*item, 9) for item in items(taps)]
    assert order_of(METHOD.score(taps)) == expected


def test_the_token_that_stands_alone_is_first_and_its_copy_last() -> None:
    """On a circle at 0, 10, 20 and 120 degrees; the last row repeats the lone one."""
    angles = np.radians([0.0, 10.0, 20.0, 120.0])
    lone = [[float(np.cos(a)), float(np.sin(a))] for a in angles]
    assert order_of(METHOD.score(with_rows(lone, 3))) == [[3, 0, 2]]
    twice = with_rows([*lone, lone[3]], 5)
    assert order_of(METHOD.score(twice))[0][:3] == [0, 3, 2]  # a copy stands nowhere near alone
    assert order_of(METHOD.score(twice))[0][-1] == 4


def test_equal_tokens_are_chosen_from_the_lowest_up() -> None:
    assert order_of(METHOD.score(with_rows([[1.0, 1.0]] * 5, 3))) == [[0, 1, 2]]


def test_the_length_of_a_row_does_not_matter() -> None:
    taps = drawn_taps(keep=5)
    longer = taps.hidden * (1 + draw(2, 14, 1, seed=77).abs())
    scaled = dataclasses.replace(taps, hidden=longer)
    assert torch.equal(METHOD.score(scaled), METHOD.score(taps))
