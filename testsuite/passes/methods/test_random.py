import hashlib
import math
from statistics import fmean, pvariance

import pytest
import sympy
import torch

from tokopt.passes.methods.method import Setting, Taps
from tokopt.passes.methods.random import METHOD, PRIME


def taps(candidates: torch.Tensor, seed: int, group: int = 1) -> Taps:
    hidden = torch.zeros(*candidates.shape, 1)
    return Taps([], 0, candidates, hidden, None, None, 1, seed, group, count=1)


def scores(count: int, seed: int, group: int = 1) -> list[int]:
    found = METHOD.score(taps(torch.ones(1, count, dtype=torch.bool), seed, group))
    return [int(value) for value in found[0].tolist()]


def in_whole_numbers(rank: int, seed: int) -> int:
    for number in range(4):
        digest = hashlib.sha256(f"{seed}:{number}".encode()).digest()
        rank = pow(rank + int.from_bytes(digest[:8], "big"), 3, 16777199)
    return rank


@pytest.mark.parametrize("seed", [0, 1, 12345])
def test_the_score_equals_the_hash_in_unbounded_integers(seed: int) -> None:
    assert scores(3000, seed) == [in_whole_numbers(rank, seed) for rank in range(3000)]


def test_no_two_rows_can_tie() -> None:
    assert sympy.isprime(PRIME) and math.gcd(3, PRIME - 1) == 1  # cubing permutes the residues
    assert PRIME < 2**24 and (PRIME - 1) ** 2 < 2**63  # exact in fp32, exact in int64
    assert len(set(scores(100_000, 7))) == 100_000


def test_another_seed_is_another_choice() -> None:
    chosen = {tuple(kept(seed)) for seed in range(50)}
    assert len(chosen) == 50


def kept(seed: int, count: int = 36, keep: int = 18) -> list[int]:
    found = scores(count, seed)
    return sorted(sorted(range(count), key=lambda row: -found[row])[:keep])


def test_subsets_spread_as_random_subsets_do() -> None:
    """Each row is kept half the time; the number in the first half varies as hypergeometric.

    A low-discrepancy sequence would keep that number nearly constant, a poor hash would favour rows
    or neighbours.  400 seeds; bounds at more than four standard deviations.
    """
    subsets = [set(kept(seed)) for seed in range(400)]
    for row in range(36):
        assert abs(fmean(row in subset for subset in subsets) - 0.5) < 0.11
    halves = [len([row for row in subset if row < 18]) for subset in subsets]
    expected = 18 * 0.25 * 18 / 35
    assert abs(pvariance(halves) - expected) < 0.3 * expected
    assert abs(fmean(halves) - 9) < 0.35
    neighbours = [sum(row + 1 in subset for row in subset) for subset in subsets]
    assert abs(fmean(neighbours) - 35 * (18 * 17) / (36 * 35)) < 0.5


def test_a_score_depends_on_the_number_among_candidates_not_on_the_row() -> None:
    early = torch.tensor([[True] * 6 + [False] * 4])
    late = torch.tensor([[False] * 3 + [True] * 4 + [False] + [True] * 2])
    first, second = METHOD.score(taps(early, 3)), METHOD.score(taps(late, 3))
    assert torch.equal(first[early], second[late])


def test_a_group_has_one_score() -> None:
    found = scores(24, 5, group=4)
    assert found == [value for value in scores(6, 5) for _ in range(4)]


def test_a_tower_that_feeds_a_decoder_is_cut_at_its_end_and_a_consumer_at_its_entry() -> None:
    (end,) = METHOD.schedule(Setting("vision", 23, 576, 64))
    (entry,) = METHOD.schedule(Setting("decoder", 32, 576, 64, consumer=True))
    assert (end.depth, entry.depth) == (23, 0)
