import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.test_fold_laws import chosen

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import LayerTap, Placement, Setting, Taps
from tokopt.passes.methods.visionzip import METHOD


def reference(
    taps: Taps,
    dominant: int,
    contextual: int,
    layer: LayerTap | None = None,
    seen: np.ndarray | None = None,
) -> tuple[list[list[int]], np.ndarray]:
    """The rule with Python loops over one item at a time: kept rows, and their features.

    ``seen``: the attention of each row, if not the class token's.
    """
    kept, made = [], []
    layer = layer or taps.layers[-1]
    for item in range(len(taps.hidden)):
        attention = layer.row(0).numpy()[item].mean(0) if seen is None else seen[item]
        keys = layer.key.numpy()[item].mean(0).astype(float)
        hidden = taps.hidden.numpy()[item].astype(float)
        patches = [i for i in range(len(hidden)) if bool(taps.candidates[item, i])]
        order = sorted(patches, key=lambda i: -attention[i])
        rest = sorted(set(patches) - set(order[:dominant]))
        targets = [rest[k * (len(rest) // contextual)] for k in range(contextual)]
        taken: dict[int, list[int]] = {t: [] for t in targets}
        for i in rest:
            if i not in taken:
                cosines = [
                    keys[i] @ keys[t] / np.linalg.norm(keys[i]) / np.linalg.norm(keys[t])
                    for t in targets
                ]
                taken[targets[int(np.argmax(cosines))]].append(i)
        new = hidden.copy()
        for t, members in taken.items():
            if members:
                new[t] = hidden[t] + np.mean([hidden[i] for i in members], axis=0)
        rows = sorted({*range(len(hidden))} - set(patches) | {*order[:dominant], *targets})
        kept.append(rows)
        made.append(new[rows])
    return kept, np.stack(made)


@pytest.mark.parametrize(("keep", "contextual"), [(6, 1), (13, 2), (19, 3), (26, 4)])
def test_rows_and_features_are_the_published_rule(keep: int, contextual: int) -> None:
    taps = drawn_taps(rows=42, keep=keep, batch=3)
    stay = chosen("visionzip", taps)
    rows, features = reference(taps, keep - contextual, contextual)
    assert stay.tolist() == rows
    assert METHOD.combine is not None
    np.testing.assert_allclose(METHOD.combine(taps, stay).numpy(), features, rtol=2e-5, atol=1e-5)


def test_the_published_splits() -> None:
    """54 + 10 of 64, 108 + 20 of 128, 162 + 30 of 192, of 576 patches behind a class token."""
    for keep, contextual in ((64, 10), (128, 20), (192, 30)):
        taps = drawn_taps(batch=1, rows=577, layers=1, keep=keep)
        taps.candidates[0, :2] = torch.tensor([False, True])
        scores = METHOD.score(taps)[0]
        assert int((scores >= 2).sum()) == keep - contextual
        assert int(((scores >= 1) & (scores < 2)).sum()) == contextual
        targets = (scores >= 1).nonzero()[:, 0].tolist()
        rest = [i for i in range(1, 577) if scores[i] < 2]
        step = {64: 52, 128: 23, 192: 13}[keep]
        assert len(rest) // contextual == step
        assert [i for i in targets if scores[i] < 2] == rest[::step][:contextual]


def test_one_stage_at_the_end_of_the_tower() -> None:
    assert METHOD.schedule(Setting("vision", 23, 576, 64)) == (Placement(23, 64),)


def test_a_tower_without_class_token_is_refused_with_a_way_out() -> None:
    with pytest.raises(UnsupportedError, match="class token") as error:
        METHOD.score(drawn_taps(relay=None))
    assert "divprune" in str(error.value)
