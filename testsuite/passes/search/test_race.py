"""A race: lost only where the paired difference is sure, and told as the rival's plus that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import pytest
import torch
from torch import Tensor

from tokopt.passes.search.race import Distances, lost, means, raced

BATCHES, SIZE = 6, 8


def rival() -> dict[int, Distances]:
    chance = torch.Generator().manual_seed(0)
    return {n: {"kl": torch.rand(SIZE, generator=chance)} for n in range(BATCHES)}


def beside(by: float, ran: list[int]) -> Iterator[tuple[int, Distances]]:
    """Yield distances around the rival's plus ``by``, alternately 0.1 more and less."""
    wobble = torch.tensor([0.1, -0.1]).repeat(SIZE // 2)
    for number, distances in rival().items():
        ran.append(number)
        yield number, {"kl": distances["kl"] + by + wobble}


def test_a_plan_surely_worse_stops_and_is_told_relative_to_the_rival() -> None:
    ran: list[int] = []
    seen, values = raced(beside(0.5, ran), rival(), "kl")
    assert ran == [0, 1] and list(seen) == ran, "16 samples are what a race needs"
    assert values["kl"] == pytest.approx(means(rival())["kl"] + 0.5)


@pytest.mark.parametrize("by", [-0.5, 0.0, 0.02])
def test_a_plan_that_may_be_better_is_judged_on_every_sample(by: float) -> None:
    ran: list[int] = []
    seen, values = raced(beside(by, ran), rival(), "kl")
    assert ran == list(range(BATCHES)) and values == means(seen)
    assert values["kl"] == pytest.approx(means(rival())["kl"] + by, abs=1e-6)


def test_without_a_rival_or_a_sample_in_common_nothing_is_lost() -> None:
    ran: list[int] = []
    raced(beside(9.0, ran), {}, "kl")
    assert len(ran) == BATCHES
    other: Mapping[int, Mapping[str, Tensor]] = {9: rival()[0]}
    assert not lost(dict(beside(9.0, [])), other, "kl")
