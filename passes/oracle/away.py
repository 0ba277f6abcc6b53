"""Away: rows that skip some layers in the oracle's run, and how they come back, a row at a time."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Away:
    """What a stage left behind whose rows come back.

    ``items`` ``[B, N, C]`` are the rows in front of it, ``entered`` those that go on (a mean among
    them), ``after`` bool ``[B, N]`` which go on, ``stands`` the row of each item that is the mean.
    """

    items: Tensor
    entered: Tensor
    after: Tensor
    stands: tuple[int, ...]

    @staticmethod
    def of(items: Tensor, after: Tensor, candidates: Tensor, scores: Tensor) -> Away:
        """Choose each item's representative: of those that go on the one of the lowest score."""
        entered, stands = items.clone(), []
        for item, free in enumerate(candidates.tolist()):
            values, goes = scores[item].tolist(), after[item].tolist()
            rows = [row for row, may_go in enumerate(free) if may_go]
            one = min((row for row in rows if goes[row]), key=lambda row: (values[row], -row))
            entered[item, one] = items[item, [one, *(r for r in rows if not goes[r])]].mean(0)
            stands.append(one)
        return Away(items, entered, after, tuple(stands))


def came_back(away: Away, items: Tensor) -> Tensor:
    """Return the rows ``[B, N, C]``, those that were gone moved as their representative was."""
    whole = items.clone()
    for item, stands in enumerate(away.stands):
        gained = items[item, stands] - away.entered[item, stands]
        gone = (~away.after[item]).nonzero()[:, 0].tolist()
        for row in [*gone, stands]:
            whole[item, row] = away.items[item, row] + gained
    return whole
