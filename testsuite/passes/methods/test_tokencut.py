import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from testsuite.passes.methods.drawn_taps import PREFIX, draw, drawn_taps, tap

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import Setting, Taps
from tokopt.passes.methods.tokencut import METHOD


def scene(parts: list[int], seed: int, batch: int = 2) -> Taps:
    """Keys in clusters, the first of which is the largest; some bridges join them."""
    rows, heads, width = sum(parts) + PREFIX, 2, 8
    centre = torch.linalg.qr(draw(heads * width, heads * width, seed=seed))[0][: len(parts)]
    label = torch.tensor([0] * PREFIX + [c for c, size in enumerate(parts) for _ in range(size)])
    noise = 0.07 * draw(batch, rows, heads * width, seed=seed + 1)
    keys = centre[label] + noise + 0.12 * centre.sum(0)
    key = (3.0 * keys).unflatten(-1, (heads, width)).transpose(1, 2)
    query = draw(batch, 2 * heads, rows, width, seed=seed + 2)
    taps = drawn_taps(batch=batch, rows=rows)
    return dataclasses.replace(taps, layers=[tap(0, query, key, key)])


def eigenvector(taps: Taps, item: int) -> tuple[np.ndarray, np.ndarray]:
    """The generalised problem as it stands, by LAPACK; v with the paper's sign, and all λ."""
    key = taps.layers[-1].key[item].numpy().astype(float)
    rows = key.transpose(1, 0, 2).reshape(key.shape[1], -1)[taps.candidates[item].numpy()]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    joined = np.where(rows @ rows.T > 0.2, 1.0, 1e-5)
    degree = np.diag(joined.sum(1))
    values, vectors = scipy.linalg.eigh(degree - joined, degree)
    v = vectors[:, 1]
    foreground = v > v.mean()
    return (v if foreground[np.abs(v).argmax()] else -v), values


@pytest.mark.parametrize(("parts", "seed"), [([20, 9], 0), ([30, 12], 5), ([25, 10, 4], 7)])
def test_the_score_is_the_second_eigenvector_where_it_stands_alone(
    parts: list[int], seed: int
) -> None:
    taps = scene(parts, seed)
    found = METHOD.score(taps)
    for item in range(2):
        expected, values = eigenvector(taps, item)
        mine = found[item][taps.candidates[item]].numpy().astype(float)
        assert values[2] - values[1] > 0.05  # else v is no single vector
        np.testing.assert_allclose(mine, expected / np.linalg.norm(expected), atol=1e-5)


def test_the_small_part_is_the_foreground_and_comes_first() -> None:
    taps = scene([20, 9], 0)
    for item in range(2):
        score = METHOD.score(taps)[item, PREFIX:]
        best = torch.topk(score, 9)[1]
        assert sorted(best.tolist()) == list(range(20, 29))


@pytest.mark.parametrize("seed", range(5))
def test_on_random_keys_the_rayleigh_quotient_is_nearly_the_smallest(seed: int) -> None:
    taps = drawn_taps(rows=40, seed=seed)
    for item in range(2):
        _, values = eigenvector(taps, item)
        key = taps.layers[-1].key[item].double().transpose(0, 1).flatten(1)
        rows = torch.nn.functional.normalize(key[taps.candidates[item]], dim=1)
        joined = torch.where(rows @ rows.T > 0.2, 1.0, 1e-5).double()
        v = METHOD.score(taps)[item][taps.candidates[item]].double()
        degree = joined.sum(1)
        assert abs(float(v @ degree)) < 1e-4 * float(degree.sum().sqrt() * v.norm())
        quotient = (v @ (degree * v) - v @ joined @ v) / (v @ (degree * v))
        assert float(quotient) == pytest.approx(values[1], rel=0.02)


def test_keys_that_are_all_alike_give_a_finite_score() -> None:
    taps = drawn_taps(layers=1)
    same = torch.ones_like(taps.layers[0].key)
    layer = dataclasses.replace(taps.layers[0], key=same)
    assert bool(METHOD.score(dataclasses.replace(taps, layers=[layer])).isfinite().all())


def test_rows_that_arrive_nowhere_are_not_cut_with() -> None:
    taps = scene([20, 9], 0)
    fewer = taps.candidates.clone()
    fewer[:, 5:9] = False
    found = METHOD.score(dataclasses.replace(taps, candidates=fewer))
    for item in range(2):
        expected, _ = eigenvector(dataclasses.replace(taps, candidates=fewer), item)
        mine = found[item][fewer[item]].numpy()
        np.testing.assert_allclose(mine, expected / np.linalg.norm(expected), atol=1e-5)
    assert not found[~fewer].any()


def test_a_site_with_no_layer_before_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layer lies before"):
        METHOD.score(drawn_taps(layers=0))


def test_the_stage_is_at_the_end() -> None:
    (place,) = METHOD.schedule(Setting("vision", 12, 196, 40))
    assert (place.depth, place.keep) == (12, 40)
