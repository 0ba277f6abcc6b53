import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import draw, drawn_taps, tap
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import TowerTap
from tokopt.passes.rewrites.attended import Attended, Marking
from tokopt.passes.rewrites.paint import REWRITE

ROWS = 50


def drawn() -> tuple[Marking, Attended]:
    taps = drawn_taps("decoder", rows=ROWS)
    assert taps.tower is not None
    tower = taps.tower
    loud = tower.layer.key.clone()
    loud[:, :, 7] *= 4  # a few patches stand out
    loud[:, :, 9] *= 4
    layer = tap(0, tower.layer.query, loud, tower.layer.value)
    others = (draw(2, 4, layer.query.shape[2], 6, seed=700 + i) for i in range(3))
    tower = dataclasses.replace(tower, layer=layer, relay=0, first=tap(0, *others))
    given = Marking(taps.candidates, tower, REWRITE.options)
    at = torch.tensor([[ROWS - 1], [ROWS - 2]])
    marks = marked(given)
    return given, Attended(taps.layers[0], taps.hidden, taps.candidates, marks, at, REWRITE.options)


def marked(given: Marking) -> Tensor:
    assert REWRITE.mark is not None
    return REWRITE.mark(given)


def looked_at(tower: TowerTap, which: str, given: Marking) -> list[np.ndarray]:
    layer = tower.layer if which == "last" else tower.first
    assert layer is not None
    seen = layer.row(0).sum(1)
    arrived = tower.arrive(seen, 0.0)
    return [arrived[i][given.candidates[i]].numpy().astype(float) for i in range(2)]


def test_summary_and_local_tokens_are_the_published_ones() -> None:
    given, _ = drawn()
    assert given.tower is not None
    marks = marked(given)
    assert bool((marks[~given.candidates] == 0).all())
    lasts, firsts = (looked_at(given.tower, which, given) for which in ("last", "first"))
    for item, (last, first) in enumerate(zip(lasts, firsts, strict=True)):
        low, high = np.percentile(last, 25), np.percentile(last, 75)
        summary = last > high + 1.5 * (high - low)
        local = np.zeros_like(summary)
        local[np.argsort(-first)[: len(first) // 4]] = True
        assert summary.any() and local.any()
        expected = 0.7 * (local & ~summary) + 0.4 * summary
        np.testing.assert_allclose(marks[item][given.candidates[item]].numpy(), expected, rtol=1e-6)


def test_logits_of_the_last_row_are_raised_as_published() -> None:
    _, taps = drawn()
    assert taps.marks is not None
    found = REWRITE.attend(taps)
    layer = taps.layer
    key = layer.key.repeat_interleave(layer.query.shape[1] // layer.key.shape[1], 1).numpy()
    for item, (row,) in enumerate(taps.at.tolist()):
        for head in range(layer.query.shape[1]):
            query = layer.query[item, head, row].numpy().astype(float)
            z = key[item, head].astype(float) @ query * layer.scale
            z = z + taps.marks[item].numpy() * np.abs(z)
            expected = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
            np.testing.assert_allclose(found[item, head, 0].numpy(), expected, rtol=2e-4, atol=1e-6)


def test_what_may_not_be_read_stays_unread() -> None:
    _, taps = drawn()
    layer = taps.layer

    def rows(at: Tensor) -> Tensor:
        assert layer.rows is not None
        seen = layer.rows(at).clone()
        seen[..., 5] = 0.0
        return seen / seen.sum(-1, keepdim=True)

    masked = dataclasses.replace(taps, layer=dataclasses.replace(layer, rows=rows))
    found = REWRITE.attend(masked)
    assert bool((found[..., 5] == 0).all())
    torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]))


def test_a_tower_without_class_token_is_refused_with_a_way_out() -> None:
    given, _ = drawn()
    assert given.tower is not None
    blind = dataclasses.replace(given, tower=dataclasses.replace(given.tower, relay=None))
    with pytest.raises(UnsupportedError, match="class token") as error:
        marked(blind)
    assert "var does without" in str(error.value)
