import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokopt.passes.methods.method import Setting, Taps
from tokopt.passes.methods.stride import METHOD


def kept(candidates: list[bool], keep: int, group: int = 1) -> list[int]:
    mask = torch.tensor([candidates])
    hidden = torch.zeros(1, len(candidates), 1)
    found = METHOD.score(Taps([], 0, mask, hidden, None, None, keep, 0, group, count=0))
    marked = (found[0] > 0).tolist()
    return [row for row, flag in enumerate(marked) if flag and candidates[row]]


def test_half_of_the_tokens_is_every_second_one() -> None:
    assert kept([True] * 8, 4) == [1, 3, 5, 7]
    assert kept([True] * 7, 3) == [2, 4, 6]


def test_text_between_visual_rows_does_not_count() -> None:
    assert kept([False, True, True, False, True, True, False], 2) == [2, 5]


def test_groups_are_spread_not_rows() -> None:
    assert kept([True] * 16, 8, group=4) == [4, 5, 6, 7, 12, 13, 14, 15]


@settings(max_examples=200, deadline=None)
@given(candidates=st.lists(st.booleans(), min_size=1, max_size=60), data=st.data())
def test_exactly_keep_tokens_stay_and_gaps_differ_by_one_at_most(
    candidates: list[bool], data: st.DataObject
) -> None:
    count = sum(candidates)
    if count == 0:
        assert kept(candidates, 1) == []
        return
    keep = data.draw(st.integers(1, count))
    found = kept(candidates, keep)
    visual = [row for row, flag in enumerate(candidates) if flag]
    numbers = [visual.index(row) for row in found]
    assert len(found) == keep
    assert numbers == [r for r in range(count) if (r + 1) * keep // count > r * keep // count]
    gaps = {b - a for a, b in zip([-1, *numbers], numbers, strict=False)}
    assert max(gaps) - min(gaps) <= 1


def test_it_is_placed_like_the_other_control() -> None:
    assert [p.depth for p in METHOD.schedule(Setting("vision", 12, 576, 64))] == [12]
    assert [p.depth for p in METHOD.schedule(Setting("vision", 12, 576, 64, consumer=True))] == [0]
