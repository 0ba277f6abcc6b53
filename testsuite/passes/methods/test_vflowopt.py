import math

import numpy as np
import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan
from testsuite.passes.methods.drawn_taps import PREFIX, drawn_taps
from testsuite.passes.methods.test_fold_laws import chosen

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.plan import Stage
from tokopt.passes.fit import fit
from tokopt.passes.methods.entropy import grey_entropy
from tokopt.passes.methods.method import Placement, Setting, Taps
from tokopt.passes.methods.vflowopt import METHOD

T, A = 4.0, 15.0
"""Of a 27 x 27 grid: a third of a percent of the rows' mean, and cells of about half the grid."""


def importance(taps: Taps, item: int, alpha: float = 0.0) -> np.ndarray:
    """I of one item's visual rows, from the formula, in float64."""
    assert taps.tower is not None and taps.tower.patches is not None
    layer = taps.tower.layer
    query, key = layer.query[item].double().numpy(), layer.key[item].double().numpy()
    logits = np.einsum("hqd,hkd->hqk", query, key) * layer.scale
    powers = np.exp(logits - logits.max(-1, keepdims=True))
    whole = (powers / powers.sum(-1, keepdims=True)).mean(0)
    got = whole[:, PREFIX:].mean(0)
    level = T * len(whole) / 729
    holders = [j for j in range(len(got)) if got[j] > level * got.mean()]
    holders = holders or [int(got.argmax())]
    found = whole[[PREFIX + j for j in holders]].mean(0)[PREFIX:]
    if alpha:
        pixels = taps.tower.patches[item].double().numpy()
        low, high = pixels.min(), pixels.max()
        entropy = []
        for patch in pixels[PREFIX:]:
            bins = np.bincount(np.minimum((patch - low) / (high - low) * 256, 255).astype(int))
            chance = bins[bins > 0] / len(patch)
            entropy.append(-(chance * np.log(chance)).sum())
        found = found + alpha * np.exp(entropy) / np.exp(entropy).sum()
    return np.asarray(found)


def reference(taps: Taps, item: int) -> tuple[list[int], np.ndarray]:
    """Rows and features behind S1, with loops over cells."""
    assert taps.places is not None
    visual = taps.candidates[item].nonzero()[:, 0].tolist()
    value = dict(zip(visual, importance(taps, item), strict=True))
    _, height, width = taps.places.shape
    edge = A * max(height, width) / 27
    cells_there = math.ceil(height / edge) * math.ceil(width / edge)
    made = min(int(height * width / edge**2), taps.keep, cells_there)
    order = sorted(visual, key=lambda row: -value[row])
    kept, rest = order[: taps.keep - made], order[taps.keep - made :]
    cells: dict[tuple[int, int], list[int]] = {}
    for row in rest:
        _, r, c = taps.places.table[item, row].tolist()
        cells.setdefault((int(r / edge), int(c / edge)), []).append(row)
    best = sorted(cells.values(), key=lambda rows: -sum(value[r] for r in rows))[:made]
    hidden = taps.hidden[item].double().numpy().copy()
    stay = set(kept)
    for rows in best:
        weights = np.array([value[row] for row in rows])
        head = max(rows, key=lambda row: value[row])
        stay.add(head)
        if len(rows) > 1:
            hidden[head] = weights @ taps.hidden[item, rows].double().numpy() / weights.sum()
    spare = [row for row in order if row not in stay][: taps.keep - len(stay)]
    rows = sorted(stay | set(spare) | {*range(len(hidden))} - set(visual))
    return rows, hidden[rows]


@pytest.mark.parametrize(("rows", "keep"), [(30, 4), (30, 11), (42, 7)])
def test_the_first_stage_keeps_and_recycles_as_published(rows: int, keep: int) -> None:
    taps = drawn_taps("decoder", rows=rows, keep=keep, options={"t": T, "a": A})
    stay = chosen("vflowopt", taps)
    assert METHOD.combine is not None
    made = METHOD.combine(taps, stay)
    for item in range(2):
        wanted, features = reference(taps, item)
        assert stay[item].tolist() == wanted
        np.testing.assert_allclose(made[item].numpy(), features, rtol=2e-5, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.5, -1.0])
def test_the_entropy_of_patches_counts_where_alpha_is_not_nought(alpha: float) -> None:
    taps = drawn_taps("decoder", rows=30, keep=24, options={"t": T, "a": A, "alpha": alpha})
    later = dict(taps.__dict__) | {"keep": taps.count}  # all stay: no tier but one
    found = METHOD.score(Taps(**later)) - 8.0
    for item in range(2):
        wanted = importance(taps, item, alpha)
        np.testing.assert_allclose(
            found[item, taps.candidates[item]].numpy(),
            wanted / np.abs(wanted).max(),
            rtol=1e-4,
            atol=2e-6,
        )


def test_a_flat_patch_has_no_entropy_and_two_equal_halves_have_ln_2() -> None:
    patches = torch.tensor([[[0.5] * 4, [0.0, 0.0, 1.0, 1.0], [0.0, 0.3, 0.6, 1.0]]])
    found = grey_entropy(patches)[0].tolist()
    assert found == pytest.approx([0.0, math.log(2), math.log(4)])
    again = grey_entropy(patches * -3 + 7)[0].tolist()
    assert again == pytest.approx(found)


def test_later_stages_follow_the_same_map() -> None:
    first = drawn_taps("decoder", rows=30, keep=12, options={"t": T})
    scored = METHOD.score(first)
    second = drawn_taps("decoder", rows=30, keep=5)
    object.__setattr__(second, "carried", scored)
    stripped = METHOD.score(second)
    order = stripped[first.candidates].argsort()
    whole = METHOD.score(Taps(**(dict(first.__dict__) | {"keep": first.count})))
    assert torch.equal(order, whole[first.candidates].argsort())
    assert METHOD.combine is not None
    stay = chosen("vflowopt", second)
    assert torch.equal(METHOD.combine(second, stay)[0], second.hidden[0, stay[0]])


@pytest.mark.parametrize(
    "shares", [(11662, 11662, 7010), (26510, 26068, 22871), (72332, 54159, 26375)]
)
def test_the_released_shares(shares: tuple[int, ...]) -> None:
    """R1 = .11662 / .2651 / .72332, and what R2 and R3 leave of them."""
    found = METHOD.schedule(Setting("decoder", 28, 100000, shares[-1], consumer=True))
    assert found == tuple(Placement(d, k) for d, k in zip((0, 9, 19), shares, strict=True))


@pytest.mark.exhaustive
def test_three_stages_pass_every_gate() -> None:
    family = analysed("llava_dynamic")
    options = {"alpha": 0.5, "a": 12.0}
    stages = [Stage(f"decoder:{d}", "vflowopt", k, options) for d, k in ((0, 14), (1, 9), (3, 4))]
    chosen_plan = plan("decoder:0 vflowopt 9")
    object.__setattr__(chosen_plan, "stages", tuple(stages))
    assert failures(checked(family, chosen_plan), [every_input(family)[-1]]) == ""


def test_what_it_reads_must_be_there() -> None:
    family = analysed("llava")
    with pytest.raises(UnsupportedError, match="reads the whole tower, and a stage at vision:1"):
        checked(family, plan("vision:1 stride 18, decoder:0 vflowopt 9"))
    with pytest.raises(UnsupportedError, match="where in the image"):
        fit(analysed("qwen").facts, METHOD, 0.25)
    with pytest.raises(UnsupportedError, match="no stack to be placed in"):
        fit(analysed("dino").facts, METHOD, 0.25)
