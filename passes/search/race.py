"""Race: a plan that is surely no better than the best so far is not judged to the end.

Both are judged on the same samples, so what counts is the difference on each: where its mean is
above nothing by more than three of its standard errors, the plan is told what the best is at plus
that mean, and the samples left are spared.  A race needs ``LEAST`` samples.  Only drawn plans run
in one; a published plan is judged on every sample.  (Maron, Moore, "Hoeffding races", NIPS 1993,
with paired differences in place of the bound.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

Distances = Mapping[str, Tensor]
"""Of one batch, by measure: each item's distance, fp32 ``[B]``."""

LEAST = 16
ERRORS = 3.0


def raced(
    batches: Iterable[tuple[int, Distances]], rival: Mapping[int, Distances], measure: str
) -> tuple[dict[int, Distances], dict[str, float]]:
    """Judge a plan batch by batch, as far as it may beat ``rival`` (empty: to the end).

    Returns what was judged, by the batches' numbers, and the distance by every measure: the mean
    over items, or the rival's and the mean difference where the race was lost.
    """
    seen: dict[int, Distances] = {}
    for number, distances in batches:
        seen[number] = distances
        if lost(seen, rival, measure):
            names = list(distances)
            return seen, {name: _estimated(seen, rival, name) for name in names}
    return seen, means(seen)


def means(seen: Mapping[int, Distances]) -> dict[str, float]:
    """Return the mean over all items, by measure."""
    first = next(iter(seen.values()))
    return {name: float(torch.cat([one[name] for one in seen.values()]).mean()) for name in first}


def lost(seen: Mapping[int, Distances], rival: Mapping[int, Distances], measure: str) -> bool:
    """Return whether what was seen is surely further than the rival, with samples still to come."""
    difference = _difference(seen, rival, measure)
    if len(difference) < LEAST or rival.keys() <= seen.keys():
        return False
    error = float(difference.std()) / len(difference) ** 0.5
    return float(difference.mean()) > max(ERRORS * error, 0.0)


def _estimated(seen: Mapping[int, Distances], rival: Mapping[int, Distances], name: str) -> float:
    return means(rival)[name] + float(_difference(seen, rival, name).mean())


def _difference(seen: Mapping[int, Distances], rival: Mapping[int, Distances], name: str) -> Tensor:
    shared: Sequence[int] = [number for number in seen if number in rival]
    found = [seen[number][name] - rival[number][name] for number in shared]
    return torch.cat(found) if found else torch.zeros(0)
