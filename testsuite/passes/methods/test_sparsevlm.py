import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.test_clustering import reference as centres_of
from testsuite.passes.methods.test_fold_laws import chosen

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import Placement, Setting, Taps
from tokopt.passes.methods.sparsevlm import METHOD, _clusters


def raters(taps: Taps, item: int) -> list[int]:
    """Which text rows rate, from the formula, with Python loops."""
    assert taps.text is not None and taps.entry is not None
    visual = taps.candidates[item].nonzero()[:, 0].tolist()
    entry = taps.entry[item].numpy().astype(float)
    text = [t for t in taps.text[item].nonzero()[:, 0].tolist() if t > max(visual)]
    mass = np.zeros(len(text))
    for v in visual:
        powers = np.exp([entry[v] @ entry[t] for t in text])
        mass += powers / powers.sum() / len(visual)
    return [t for t, m in zip(text, mass, strict=True) if m > mass.mean()]


def reference(taps: Taps, item: int, kept: int, clusters: int) -> tuple[list[int], np.ndarray]:
    assert taps.layers[-1].rows is not None
    every = torch.arange(taps.hidden.shape[1]).expand(len(taps.hidden), -1)
    attention = taps.layers[-1].rows(every)[item].mean(0).numpy()
    visual = taps.candidates[item].nonzero()[:, 0].tolist()
    rating = attention[raters(taps, item)].mean(0)
    order = sorted(visual, key=lambda j: -rating[j])
    pool = sorted(order[kept:][: max(int(0.3 * (len(visual) - kept)) + 1, clusters)])
    hidden = taps.hidden[item].numpy().astype(float)
    made = hidden.copy()
    centres = [pool[c] for c in centres_of(taps.hidden[item, pool], clusters)] if clusters else []
    members: dict[int, list[int]] = {c: [] for c in centres}
    for row in pool if clusters else []:
        nearest = min(centres, key=lambda c: (np.linalg.norm(hidden[row] - hidden[c]), c))
        members[nearest].append(row)
    for centre, group in members.items():
        made[centre] = hidden[group].mean(0)
    stay = {*range(len(hidden))} - set(visual) | {*order[:kept], *centres}
    return sorted(stay), made[sorted(stay)]


@pytest.mark.parametrize(
    ("rows", "keep", "kept", "clusters"),
    [(32, 1, 0, 1), (32, 4, 3, 1), (56, 6, 4, 2), (32, 26, 26, 0)],
)
def test_rows_and_clusters_are_the_published_rule(
    rows: int, keep: int, kept: int, clusters: int
) -> None:
    taps = drawn_taps("decoder", rows=rows, keep=keep)
    assert taps.count == rows - 6 and _clusters(taps) == (kept, clusters)
    stay = chosen("sparsevlm", taps)
    assert METHOD.combine is not None
    made = METHOD.combine(taps, stay)
    for item in range(2):
        wanted, features = reference(taps, item, kept, clusters)
        assert stay[item].tolist() == wanted
        np.testing.assert_allclose(made[item].numpy(), features, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("before", "total", "kept"),
    [
        (576, 309, 300),
        (309, 204, 200),
        (204, 113, 110),
        (576, 312, 303),
        (312, 117, 110),
        (117, 39, 36),
        (576, 82, 66),
        (82, 32, 30),
        (32, 18, 17),
    ],
)
def test_the_published_lists_are_kept_and_recycled(before: int, total: int, kept: int) -> None:
    taps = drawn_taps("decoder", rows=before + 6, keep=total, layers=1)
    assert taps.count == before and _clusters(taps) == (kept, total - kept)


def test_who_rates_is_found_once_and_carried() -> None:
    taps = drawn_taps("decoder", rows=24, keep=6)
    first = METHOD.score(taps)
    for item in range(2):
        rating = (first[item] > 0) & ~taps.candidates[item]
        assert rating.nonzero()[:, 0].tolist() == raters(taps, item)
    other = drawn_taps("decoder", rows=24, keep=6, seed=0)
    object.__setattr__(other, "carried", first)
    object.__setattr__(other, "entry", None)
    assert torch.equal(METHOD.score(other), first)


@pytest.mark.parametrize(
    ("keep", "totals"), [(18, (82, 32, 18)), (39, (312, 117, 39)), (113, (312, 204, 113))]
)
def test_the_schedule_is_the_published_one(keep: int, totals: tuple[int, ...]) -> None:
    found = METHOD.schedule(Setting("decoder", 32, 576, keep, consumer=True))
    assert found == tuple(Placement(d, k) for d, k in zip((3, 7, 16), totals, strict=True))


def test_a_tower_has_no_prompt() -> None:
    with pytest.raises(UnsupportedError, match="compares tokens with the prompt"):
        METHOD.score(drawn_taps("vision"))
