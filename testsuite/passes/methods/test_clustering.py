import math

import torch

from tokopt.passes.methods.clustering import density_peaks, distances


def reference(rows: torch.Tensor, count: int) -> list[int]:
    """Density peaks of ``[M, D]`` from the formula, a pair of rows at a time."""
    size = len(rows)
    apart = [[math.dist(a, b) / math.sqrt(len(a)) for b in rows.tolist()] for a in rows.tolist()]
    density = [math.exp(-sum(d * d for d in sorted(row)[:count]) / count) for row in apart]
    largest = max(max(row) for row in apart)
    peak = []
    for i in range(size):
        denser = [j for j in range(size) if (density[j], -j) > (density[i], -i)]
        peak.append(density[i] * min((apart[i][j] for j in denser), default=largest))
    return sorted(sorted(range(size), key=lambda i: (-peak[i], i))[:count])


def test_centres_are_those_of_the_formula() -> None:
    drawn = torch.Generator().manual_seed(5)
    for count in (1, 2, 5):
        rows = torch.randn(3, 23, 7, generator=drawn)
        found = density_peaks(rows, count)
        assert found.tolist() == [reference(item, count) for item in rows]


def test_three_clumps_have_three_centres() -> None:
    clumps = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]]).repeat_interleave(4, 0)
    around = torch.tensor([[0.0, 0.0], [0.1, 0.0], [0.0, 0.2], [0.2, 0.1]]).repeat(3, 1)
    centres = density_peaks((clumps + around)[None], 3)[0]
    assert sorted(int(c) // 4 for c in centres) == [0, 1, 2]


def test_of_equal_rows_the_first_is_the_centre() -> None:
    assert density_peaks(torch.ones(1, 6, 4), 1).tolist() == [[0]]


def test_distances_are_scaled_by_the_root_of_the_width() -> None:
    a, b = torch.tensor([[[3.0, 0.0, 0.0, 4.0]]]), torch.zeros(1, 1, 4)
    assert distances(a, b).item() == 2.5
