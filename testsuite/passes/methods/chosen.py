"""What a greedy method chose, read off its score, and the units a reference chooses among."""

import dataclasses

import numpy as np
import torch
from testsuite.passes.methods.drawn_taps import draw, drawn_taps

from tokopt.passes.methods.method import Taps


def order_of(scores: torch.Tensor) -> list[list[int]]:
    """Return the rows of each item in the order in which they were chosen (distinct steps)."""
    result = []
    for item in scores.tolist():
        chosen = [row for row, value in enumerate(item) if value > 0]
        result.append(sorted(chosen, key=lambda row: -item[row]))
    return result


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def items(taps: Taps) -> list[tuple[np.ndarray, list[int]]]:
    """Return each item's rows of length 1 in double precision, and its candidates."""
    hidden = unit(taps.hidden.double().numpy())
    return [
        (rows, [n for n, flag in enumerate(mask) if flag])
        for rows, mask in zip(hidden, taps.candidates.tolist(), strict=True)
    ]


def greedily(gain, candidates: list[int], steps: int) -> list[int]:  # type: ignore[no-untyped-def]
    """Choose ``steps`` times the candidate of highest ``gain(chosen, row)``, from nothing."""
    chosen: list[int] = []
    for _ in range(steps):
        left = [row for row in candidates if row not in chosen]
        chosen.append(max(left, key=lambda row: (gain(chosen, row), -row)))
    return chosen


def with_rows(rows: list[list[float]], keep: int, text: int = 0) -> Taps:
    """One item; the last ``text`` rows are no candidates."""
    hidden = torch.tensor([rows])
    mask = torch.ones(1, len(rows), dtype=torch.bool)
    mask[:, len(rows) - text :] = False
    taps = drawn_taps("decoder", batch=1, rows=len(rows), keep=keep)
    return dataclasses.replace(
        taps, hidden=hidden, candidates=mask, text=~mask, count=int(mask.sum())
    )


def in_groups(keep: int, scattered: bool, seed: int) -> tuple[Taps, list[list[int]]]:
    """Six groups of two candidates behind two text rows and before two; returns their rows."""
    pairs = [[2 * n + 2, 2 * n + 3] for n in range(6)]
    if scattered:
        pairs = [[2 + n, 8 + n] for n in range(6)]
    mask = torch.zeros(1, 16, dtype=torch.bool)
    mask[:, 2:14] = True
    groups = torch.zeros(1, 16, dtype=torch.int64)
    for number, pair in enumerate(pairs):
        groups[0, pair] = number
    taps = dataclasses.replace(
        drawn_taps("decoder", batch=1, rows=16, keep=keep),
        hidden=draw(1, 16, 12, seed=seed),
        candidates=mask,
        text=~mask,
        group=2,
        count=12,
        groups=groups if scattered else None,
    )
    return taps, pairs


def of_means(taps: Taps, pairs: list[list[int]]) -> Taps:
    """Return taps in which every group is one row, its mean; text rows stay around them."""
    assert len(taps.candidates) == 1
    front, back = min(map(min, pairs)), max(map(max, pairs)) + 1

    def merged(rows: torch.Tensor) -> torch.Tensor:
        means = [rows[..., pair, :].mean(-2, keepdim=True) for pair in pairs]
        return torch.cat([rows[..., :front, :], *means, rows[..., back:, :]], -2)

    mask = torch.zeros(1, front + len(pairs) + taps.hidden.shape[1] - back, dtype=torch.bool)
    mask[:, front : front + len(pairs)] = True
    return dataclasses.replace(
        taps,
        hidden=merged(taps.hidden),
        candidates=mask,
        text=~mask,
        group=1,
        count=len(pairs),
        groups=None,
        keep=taps.keep // 2,
        layers=[dataclasses.replace(t, key=merged(t.key.abs())) for t in taps.layers],
    )
