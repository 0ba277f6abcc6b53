import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.passes.methods.method import LayerTap, Taps
from tokopt.passes.methods.received import BLOCK, received


def matrix(layer: LayerTap) -> np.ndarray:
    """The head mean of the whole attention, ``[B, N, N]``, in float64."""
    query, key = layer.query.numpy().astype(float), layer.key.numpy().astype(float)
    key = key.repeat(query.shape[1] // key.shape[1], axis=1)
    logits = np.einsum("bhid,bhjd->bhij", query, key) * layer.scale
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    found: np.ndarray = (powers / powers.sum(-1, keepdims=True)).mean(1)
    return found


@pytest.mark.parametrize("role", ["vision", "decoder"])
@pytest.mark.parametrize("rows", [14, 2 * BLOCK + 9])
def test_it_is_the_column_mean_of_the_whole_matrix(role: str, rows: int) -> None:
    taps = drawn_taps(role, rows=rows, layers=1, batch=3)
    whole, visual = matrix(taps.layers[0]), taps.candidates.numpy()
    for everyone in (False, True):
        found = received(taps.layers[0], taps.candidates, taps.count, everyone).numpy()
        for item in range(3):
            asked = whole[item] if everyone else whole[item][visual[item]]
            np.testing.assert_allclose(found[item], asked.mean(0), rtol=1e-5)


def test_rows_that_arrive_nowhere_do_not_ask() -> None:
    taps = drawn_taps(layers=1, batch=2)
    fewer = taps.candidates.clone()
    fewer[0, 5:8] = False
    fewer[1, 10:13] = False
    known: Taps = dataclasses.replace(taps, candidates=fewer)
    whole = matrix(taps.layers[0])
    for item in range(2):
        expected = whole[item][fewer[item].numpy()].mean(0)
        found = received(taps.layers[0], known.candidates, known.count, everyone=False)[
            item
        ].numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        everyone = received(taps.layers[0], known.candidates, known.count, everyone=True)[
            item
        ].numpy()
        np.testing.assert_allclose(everyone, whole[item].mean(0), rtol=1e-5)


def test_no_more_than_a_block_of_rows_is_asked_at_once() -> None:
    taps = drawn_taps(rows=3 * BLOCK, layers=1)
    layer, asked = taps.layers[0], list[int]()

    def rows(at: torch.Tensor) -> torch.Tensor:
        asked.append(at.shape[1])
        assert layer.rows is not None
        return layer.rows(at)

    received(dataclasses.replace(layer, rows=rows), taps.candidates, taps.count, everyone=True)
    assert max(asked) == BLOCK and sum(asked) == 3 * BLOCK


def test_a_tower_of_patches_alone_has_no_other_rows_to_ask() -> None:
    taps = drawn_taps("vision", rows=14, layers=1, batch=2)
    layer, asked = taps.layers[0], list[int]()

    def rows(at: torch.Tensor) -> torch.Tensor:
        asked.append(at.shape[1])
        assert layer.rows is not None
        return layer.rows(at)

    every = torch.ones_like(taps.candidates)
    watched = dataclasses.replace(layer, rows=rows)
    found = received(watched, every, every.shape[1], everyone=True)
    np.testing.assert_allclose(found.numpy(), matrix(layer).mean(1), rtol=1e-5)
    assert asked == [14]
