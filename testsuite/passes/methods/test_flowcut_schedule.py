from fractions import Fraction
from math import isqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from testsuite.passes.analysed import analysed

from tokopt.passes.fit import fit
from tokopt.passes.methods.flowcut_schedule import schedule, tower_rows
from tokopt.passes.methods.method import Placement, Setting
from tokopt.passes.methods.registry import find_method


def pairs(setting: Setting) -> list[tuple[int, int]]:
    return [(place.depth, place.keep) for place in schedule(setting)]


def test_the_published_tower_gets_the_worked_example_of_the_method_notes() -> None:
    """N = 576, T = 64, r_H from 0.98 to 0.80: research/selection-methods-a.md, 3 (9)."""
    found = pairs(Setting("vision", 23, 576, 64))
    assert [depth for depth, _ in found] == list(range(2, 23, 2))
    assert [keep for _, keep in found] == [570, 559, 544, 524, 499, 469, 434, 392, 342, 277, 64]


def test_one_step_by_hand() -> None:
    """After layer 5, rho = 16: 80 / 4 * (1 - 0.6²) = 12.8, so 13 leave; r_H = 1 drops none."""
    entropies = [1.0] * 5 + [0.6] + [1.0] * 17
    found = pairs(Setting("vision", 23, 100, 20, entropies=tuple(entropies)))
    assert found == [(6, 87), (22, 20)]


def test_entropies_are_read_at_the_layer_before_the_site() -> None:
    entropies = [0.0] * 23
    entropies[1] = 1.0
    found = pairs(Setting("vision", 23, 100, 20, entropies=tuple(entropies)))
    assert found[0][0] == 4  # nothing leaves after layer 1, where attention is even


def exactly(layer: int, left: int, target: int, ratio: Fraction) -> int:
    """The recurrence in whole numbers: round half even of (n - T)(1 - r²)/sqrt(rho)."""
    if layer == 21:
        return min(left, target)
    square = ((left - target) * (1 - ratio**2)) ** 2 / (21 - layer)
    low = isqrt(square.numerator // square.denominator)
    half = (low + Fraction(1, 2)) ** 2
    cut = low + (half < square or (half == square and low % 2))
    return max(left - cut, target)


@settings(max_examples=100, deadline=None)
@given(
    ratios=st.lists(st.integers(0, 64), min_size=23, max_size=23),
    count=st.integers(2, 700),
    data=st.data(),
)
def test_the_recurrence_equals_exact_arithmetic(
    ratios: list[int], count: int, data: st.DataObject
) -> None:
    keep = data.draw(st.integers(1, count))
    entropies = tuple(r / 64 for r in ratios)  # exact in binary: ties are ties
    left, expected = count, {}
    for layer in range(1, 22, 2):
        left = exactly(layer, left, keep, Fraction(ratios[layer], 64))
        expected[layer + 1] = left
    found = pairs(Setting("vision", 23, count, keep, entropies=entropies))
    before = dict(zip(sorted(expected), [count, *expected.values()], strict=False))
    assert found == [(d, k) for d, k in expected.items() if k < before[d] or d == 22]


@settings(max_examples=200, deadline=None)
@given(
    layers=st.integers(1, 60),
    count=st.integers(1, 300),
    group=st.sampled_from([1, 4]),
    data=st.data(),
)
def test_counts_fall_to_the_target_in_whole_groups_and_grow_with_it(
    layers: int, count: int, group: int, data: st.DataObject
) -> None:
    count *= group
    keep = data.draw(st.integers(1, count // group)) * group
    found = pairs(Setting("vision", layers, count, keep, group))
    depths = [depth for depth, _ in found]
    keeps = [kept for _, kept in found]
    assert keeps[-1] == keep and depths == sorted(set(depths))
    assert all(kept % group == 0 for kept in keeps)
    assert all(a > b for a, b in zip([count, *keeps], keeps[:-1], strict=False))
    assert depths[0] >= 1 and depths[-1] == max(1, min(layers - 1, round(22 * layers / 23)))
    if keep < count:
        more = dict(pairs(Setting("vision", layers, count, keep + group, group)))
        rows = present(more, count, layers)
        assert all(a <= b for a, b in zip(present(dict(found), count, layers), rows, strict=True))


def present(cuts: dict[int, int], count: int, layers: int) -> list[int]:
    rows, left = [], count
    for depth in range(layers + 1):
        left = cuts.get(depth, left)
        rows.append(left)
    return rows


def test_a_decoder_gets_one_early_cut() -> None:
    assert pairs(Setting("decoder", 32, 576, 64, consumer=True)) == [(2, 64)]
    assert pairs(Setting("decoder", 4, 36, 9, consumer=True)) == [(1, 9)]


@pytest.mark.parametrize(("layers", "last"), [(12, 11), (24, 23), (32, 31), (2, 1), (1, 1)])
def test_other_depths_keep_the_shape(layers: int, last: int) -> None:
    found = pairs(Setting("vision", layers, 576, 64))
    assert found[-1] == (last, 64)
    assert len(found) == min(11, max(1, layers - 1))


def test_on_another_depth_the_entropy_is_that_of_the_layer_before_the_moved_site() -> None:
    """Of 46 layers the published layer 5 is layer 11: its site enters layer 12."""
    entropies = [1.0] * 46
    entropies[11] = 0.6
    found = pairs(Setting("vision", 46, 100, 20, entropies=tuple(entropies)))
    assert found == [(12, 87), (44, 20)]


def test_a_group_of_which_one_row_would_stay_stays_whole() -> None:
    """By hand as above 13 of 100 leave: 87 rows are 21 groups of 4 and three rows more."""
    entropies = [1.0] * 5 + [0.6] + [1.0] * 17
    found = pairs(Setting("vision", 23, 100, 20, group=4, entropies=tuple(entropies)))
    assert found == [(6, 88), (22, 20)]


def test_the_published_pair_of_stacks_hands_on_twice_what_stays() -> None:
    """LLaVA-NeXT: the tower keeps 2T, the decoder cuts to T in its second layer of 32."""
    setting = Setting("decoder", 32, 2880, 320, consumer=True)
    assert tower_rows(setting) == 640
    assert schedule(setting) == (Placement(2, 320),)
    assert tower_rows(Setting("decoder", 32, 576, 400)) == 576
    found = fit(analysed("llava").facts, find_method("flowcut"), 0.3, options={"stacks": "both"})
    stages = [(stage.site, stage.keep) for stage in found.plan.stages]
    assert stages == [("vision:1", 33), ("vision:2", 18), ("decoder:1", 8)]
    assert found.spent == Fraction(18 + 3 * 8, 144) and "not calibrated" in found.note
