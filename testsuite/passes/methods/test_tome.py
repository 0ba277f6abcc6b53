import dataclasses
import itertools

import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.test_fold_laws import chosen
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import Placement, Setting, Taps
from tokopt.passes.methods.tome import METHOD


def reference(taps: Taps) -> tuple[list[list[int]], list[np.ndarray], list[list[float]]]:
    """ToMe an edge at a time, as the paper tells it: rows kept, their features, their sizes."""
    kept, features, counts = [], [], []
    assert taps.sizes is not None
    for item in range(len(taps.hidden)):
        keys = taps.layers[-1].key.numpy()[item].astype(float).mean(0)
        tokens = [i for i in range(len(keys)) if bool(taps.candidates[item, i])]
        even, odd = [i for i in tokens if i % 2 == 0], [i for i in tokens if i % 2]
        edges = []
        for a in even:
            cosines = [
                keys[a] @ keys[b] / np.linalg.norm(keys[a]) / np.linalg.norm(keys[b]) for b in odd
            ]
            edges.append((max(cosines), a, odd[int(np.argmax(cosines))]))
        edges.sort(key=lambda edge: -edge[0])
        members = {b: [b] for b in odd}
        for _, a, b in edges[: taps.count - taps.keep]:
            members[b].append(a)
        gone = {a for _, a, _ in edges[: taps.count - taps.keep]}
        size = taps.sizes[item].tolist()
        x = taps.hidden.numpy()[item].astype(float)
        rows = [i for i in range(len(keys)) if i not in gone]
        groups = [members.get(i, [i]) for i in rows]
        kept.append(rows)
        counts.append([sum(size[i] for i in group) for group in groups])
        features.append(
            np.stack([sum(size[i] * x[i] for i in g) / sum(size[i] for i in g) for g in groups])
        )
    return kept, features, counts


def merged(taps: Taps) -> tuple[Tensor, Tensor, Tensor]:
    assert METHOD.combine is not None and METHOD.weigh is not None
    stay = chosen("tome", taps)
    return stay, METHOD.combine(taps, stay), METHOD.weigh(taps, stay)


@pytest.mark.parametrize("keep", [20, 23, 31, 39])
def test_rows_features_and_sizes_are_the_published_rule(keep: int) -> None:
    taps = drawn_taps(rows=42, keep=keep, batch=3)
    rows, features, counts = reference(taps)
    stay, values, sizes = merged(taps)
    assert stay.tolist() == rows
    assert sizes.tolist() == counts
    np.testing.assert_allclose(values.numpy(), np.stack(features), rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("keep", [1, 5, 19, 20, 40])
def test_no_patch_is_lost(keep: int) -> None:
    """Sizes add up, and so does what they weigh."""
    taps = drawn_taps(rows=42, keep=keep, batch=2)
    assert taps.sizes is not None
    _, values, sizes = merged(taps)
    torch.testing.assert_close(sizes.sum(1), taps.sizes.sum(1))
    total = (taps.sizes.unsqueeze(-1) * taps.hidden).sum(1)
    torch.testing.assert_close((sizes.unsqueeze(-1) * values).sum(1), total, rtol=1e-4, atol=1e-4)


def test_equal_tokens_merge_into_themselves() -> None:
    taps = drawn_taps(rows=42, keep=20)
    twin = torch.arange(42) // 2 * 2  # an even row and the odd one behind it
    key = taps.layers[-1].key[:, :, twin]
    layers = [*taps.layers[:-1], dataclasses.replace(taps.layers[-1], key=key)]
    hidden = taps.hidden[:, twin]
    stay, values, _ = merged(dataclasses.replace(taps, layers=layers, hidden=hidden))
    assert stay[0].tolist() == [0, 1, *range(3, 42, 2)]
    torch.testing.assert_close(values, hidden[:, stay[0]])


def test_the_same_number_leaves_in_every_layer() -> None:
    places = METHOD.schedule(Setting("vision", 24, 576, 24))
    assert places[0] == Placement(1, 553) and places[-1] == Placement(24, 24)
    assert {a.keep - b.keep for a, b in itertools.pairwise(places)} == {23}


def test_a_site_without_a_layer_before_it_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="tome reads attention"):
        METHOD.score(drawn_taps(layers=0))
