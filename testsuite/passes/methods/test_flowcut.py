import dataclasses
import math

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.methods.drawn_taps import drawn_taps, tap
from testsuite.passes.methods.kept_rows import kept_rows
from testsuite.passes.methods.llava_attention import truth

from tokopt.passes.methods.flowcut import METHOD
from tokopt.passes.methods.method import LayerTap, Taps


def softmax(logits: list[float]) -> list[float]:
    powers = [math.exp(x - max(logits)) for x in logits]
    return [p / sum(powers) for p in powers]


def head_mean(rows: list[list[float]]) -> list[float]:
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def to_one(mass: list[float], inside: list[bool]) -> list[float]:
    whole = sum(m for m, flag in zip(mass, inside, strict=True) if flag)
    return [m / whole if flag else 0.0 for m, flag in zip(mass, inside, strict=True)]


def density(values: np.ndarray) -> list[float]:
    """``values [H, N, d]``: mean over heads first, then the 1-norm."""
    heads, rows, width = values.shape
    return [
        sum(abs(sum(values[h, j, c] for h in range(heads)) / heads) for c in range(width))
        for j in range(rows)
    ]


def tower_flow(attention: np.ndarray, values: np.ndarray, inside: list[bool]) -> list[float]:
    """One item: class-token rows ``[H, N]`` of the attention, values ``[H, N, d]``."""
    strength = to_one(head_mean(attention.tolist()), inside)
    alike = [softmax([float(v[0] @ w) for w in v]) for v in values]
    semantic = to_one(head_mean(alike), inside)
    return [(a + s) * d for a, s, d in zip(strength, semantic, density(values), strict=True)]


def relayless_flow(
    query: np.ndarray, key: np.ndarray, values: np.ndarray, scale: float
) -> list[float]:
    rows = []
    for head in range(query.shape[0]):
        keys = key[head * key.shape[0] // query.shape[0]]
        mean = sum(query[head]) / query.shape[1]
        rows.append(softmax([float(mean @ k) * scale for k in keys]))
    return [a * d for a, d in zip(head_mean(rows), density(values), strict=True)]


def decoder_flow(logits: np.ndarray, values: np.ndarray, inside: list[bool]) -> list[float]:
    """``logits [H, N]`` of the last row; softmax over visual keys only, values with 1/sqrt(d)."""
    visual = [j for j, flag in enumerate(inside) if flag]

    def spread(rows: list[list[float]]) -> list[float]:
        short = head_mean([softmax([row[j] for j in visual]) for row in rows])
        full = [0.0] * len(inside)
        for j, mass in zip(visual, short, strict=True):
            full[j] = mass / sum(short)
        return full

    alike = [[float(v[-1] @ w) / math.sqrt(len(w)) for w in v] for v in values]
    pairs = zip(spread(logits.tolist()), spread(alike), density(values), strict=True)
    return [(a + s) * d for a, s, d in pairs]


def logits_of(layer: LayerTap, item: int, row: int) -> np.ndarray:
    query, key = layer.query[item].double().numpy(), layer.key[item].double().numpy()
    groups = query.shape[0] // key.shape[0]
    return np.array([key[h // groups] @ query[h, row] * layer.scale for h in range(query.shape[0])])


def rows_of(layer: LayerTap, item: int, row: int) -> np.ndarray:
    return np.array([softmax(line) for line in logits_of(layer, item, row).tolist()])


def accumulated(taps: Taps, item: int, start: list[float] | None = None) -> list[float]:
    """C <- C/2 + S/2 over the layers, C of the first one S."""
    inside = taps.candidates[item].tolist()
    total = start
    for layer in taps.layers:
        values = layer.value[item].double().numpy()
        if taps.relay is None:
            query, key = (x[item].double().numpy() for x in (layer.query, layer.key))
            step = relayless_flow(query, key, values, layer.scale)
        else:
            step = tower_flow(rows_of(layer, item, 0), values, inside)
        total = step if total is None else [(c + s) / 2 for c, s in zip(total, step, strict=True)]
    assert total is not None
    return total


@pytest.mark.parametrize("relay", [0, None])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_a_tower_score_is_the_published_recurrence(
    relay: int | None, heads: tuple[int, int]
) -> None:
    taps = drawn_taps(relay=relay, heads=heads[0], kv_heads=heads[1])
    found = METHOD.score(taps)
    for item in range(2):
        np.testing.assert_allclose(found[item].numpy(), accumulated(taps, item), rtol=1e-4)


@pytest.mark.parametrize("relay", [0, None])
def test_the_next_stage_carries_the_score_on(relay: int | None) -> None:
    """Cut after two layers, keep five tokens, two more layers run on what is left."""
    first = drawn_taps(relay=relay, batch=1, layers=2, seed=5)
    carried = METHOD.score(first)
    (kept,) = kept_rows(carried.numpy(), first.candidates.numpy(), 5)
    rows = sorted([r for r in range(14) if not first.candidates[0, r]] + kept)
    later = [
        tap(layer.depth, *(x[:, :, rows] for x in (layer.query, layer.key, layer.value)))
        for layer in drawn_taps(relay=relay, batch=1, layers=4, seed=6).layers[2:]
    ]
    second = dataclasses.replace(
        first, layers=later, candidates=first.candidates[:, rows], carried=carried[:, rows]
    )
    start = [accumulated(first, 0)[row] for row in rows]
    expected = accumulated(second, 0, start)
    np.testing.assert_allclose(METHOD.score(second)[0].numpy(), expected, rtol=1e-4)


def test_a_hand_worked_tower_score() -> None:
    """Two patches, one head, width 1: v = (0, 1, 2), class row (1/2, 1/8, 3/8)."""
    rows = torch.tensor([[[0.5, 0.125, 0.375]]])
    value = torch.tensor([[[[0.0], [1.0], [2.0]]]])
    layer = LayerTap(0, value, value, value, lambda number: rows, 1.0)
    taps = dataclasses.replace(
        drawn_taps(batch=1, rows=3),
        layers=[layer],
        candidates=torch.tensor([[False, True, True]]),
    )
    # a = (1/4, 3/4); v_cls = 0, so s = (1/2, 1/2); density = (1, 2)
    assert METHOD.score(taps)[0, 1:].tolist() == pytest.approx([0.75, 2.5])


def test_a_hand_worked_score_without_relay() -> None:
    """The mean query is 0: attention is even; the values' norms decide, signs do not."""
    query = torch.tensor([[[[1.0], [-1.0]]]])
    value = torch.tensor([[[[3.0], [-4.0]]]])
    layer = LayerTap(0, query, query, value, lambda number: query, 1.0)
    taps = dataclasses.replace(
        drawn_taps(batch=1, rows=2, relay=None),
        layers=[layer],
        candidates=torch.ones(1, 2, dtype=torch.bool),
    )
    assert METHOD.score(taps)[0].tolist() == pytest.approx([1.5, 2.0])


def test_values_cancel_over_heads_before_their_norm_is_taken() -> None:
    query = torch.zeros(1, 2, 2, 1)
    value = torch.tensor([[[[1.0], [1.0]], [[-1.0], [1.0]]]])
    layer = LayerTap(0, query, query, value, lambda number: query, 1.0)
    taps = dataclasses.replace(
        drawn_taps(batch=1, rows=2, relay=None),
        layers=[layer],
        candidates=torch.ones(1, 2, dtype=torch.bool),
    )
    assert METHOD.score(taps)[0].tolist() == pytest.approx([0.0, 0.5])


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
def test_a_decoder_score_is_that_of_the_nearest_layer_over_visual_keys(
    heads: tuple[int, int],
) -> None:
    taps = drawn_taps("decoder", heads=heads[0], kv_heads=heads[1])
    layer = taps.layers[-1]
    for item in range(2):
        inside = taps.candidates[item].tolist()
        values = layer.value[item].double().numpy()
        expected = decoder_flow(logits_of(layer, item, -1), values, inside)
        found = METHOD.score(taps)[item].numpy()
        np.testing.assert_allclose(found[inside], np.array(expected)[inside], rtol=1e-4)


@pytest.mark.parametrize("model", ["llava", "llava_explicit", "llava_dynamic"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_tower_tokens_kept_are_those_of_the_eager_attention(model: str, depth: int) -> None:
    seen = analysed(model).observed().stacks["vision"]
    site = "vision:end" if depth == 3 else f"vision:{depth}"
    taps = seen.taps(site, 9)
    expected = []
    for item in range(2):
        total: list[float] | None = None
        for layer in range(depth):
            values = truth().tower_values[layer][item].transpose(1, 0, 2).astype(float)
            step = tower_flow(truth().tower[layer][item, :, 0], values, [False] + [True] * 36)
            pairs = zip(total or step, step, strict=True)
            total = step if total is None else [(c + s) / 2 for c, s in pairs]
        expected.append(total)
    allowed = taps.candidates.numpy()
    for keep in (1, 9, 20, 35):
        assert kept_rows(METHOD.score(taps).numpy(), allowed, keep) == kept_rows(
            np.array(expected), allowed, keep
        )


@pytest.mark.parametrize("model", ["llava", "llava_explicit", "llava_dynamic"])
def test_decoder_tokens_kept_are_those_of_the_eager_attention(model: str) -> None:
    """A row of HF's attention, restricted to visual keys and scaled, is a softmax over them."""
    taps = analysed(model).observed().stacks["decoder"].taps("decoder:2", 9)
    expected = []
    for item in range(2):
        logits = np.log(truth().decoder[1][item, :, -1].astype(float) + 1e-300)
        values = truth().decoder_values[1][item].transpose(1, 0, 2).astype(float)
        expected.append(decoder_flow(logits, values, truth().visual[item].tolist()))
    for keep in (1, 9, 20, 35):
        assert kept_rows(METHOD.score(taps).numpy(), truth().visual, keep) == kept_rows(
            np.array(expected), truth().visual, keep
        )
