"""Away: rows that skip some layers in the oracle's run, and how they come back, a row at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Away:
    """What a stage left behind whose rows come back.

    ``items`` ``[B, N, C]`` are the rows in front of it, ``entered`` those that go on (a mean among
    them), ``after`` bool ``[B, N]`` which go on; ``candidates`` it chose among, by ``scores``.
    """

    items: Tensor
    entered: Tensor
    after: Tensor
    candidates: Tensor
    scores: Tensor


def came_back(away: Away, items: Tensor) -> Tensor:
    """Return the rows ``[B, N, C]``, those that were gone moved as their representative was."""
    whole = items.clone()
    for item in range(len(items)):
        chosen = (away.after[item] & away.candidates[item]).nonzero()[:, 0].tolist()
        scores = away.scores[item].tolist()
        stands = min(chosen, key=lambda row: (scores[row], -row))
        gained = items[item, stands] - away.entered[item, stands]
        gone = (~away.after[item]).nonzero()[:, 0].tolist()
        for row in [*gone, stands]:
            whole[item, row] = away.items[item, row] + gained
    return whole
