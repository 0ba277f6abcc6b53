"""Contextual: the rows of most attention stay, the rest is folded into evenly spread ones of it.

The rule that VisionZip and VisionDrop share, for T = D + C rows that are to stay:

    dominant     the D rows of largest attention
    targets      of the others, in order: numbers 0, s, 2s, .. (C-1)s with s = ⌊others / C⌋
    contextual   x_t + mean of the x_j that are nearest to target t by cosine of their metric

As in both codes the mean is added to the target, so a contextual row has about twice the norm of
others.  It stands where its target stood.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.fold import (
    first_rows,
    has_any,
    nearest,
    rows_at,
    segmented_mean,
    stays,
    written,
)
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.rows import rank_of, top_rows


def tiers(taps: Taps, attention: Tensor, count: int) -> Tensor:
    """Return attention ``[B, N]``, 2 more at dominant rows, 1 more at ``count`` targets."""
    dominant, target = _chosen(taps, attention, count)
    return attention + 2.0 * dominant + 1.0 * target


def folded(taps: Taps, stay: Tensor, attention: Tensor, metric: Tensor, count: int) -> Tensor:
    """Return the rows that stay, the dropped ones folded into the ``count`` targets among them.

    ``metric`` is ``[B, N, d]``.
    """
    rows = rows_at(taps.hidden, stay)
    if not count:
        return rows
    _, target = _chosen(taps, attention, count)
    places = first_rows(target.gather(1, stay), count)
    at = stay.gather(1, places)
    goes = taps.candidates & ~stays(taps, stay)
    to = nearest(metric, rows_at(metric, at), target.gather(1, at))
    mean = segmented_mean(taps.hidden, to, goes.float(), count)
    taken = has_any(to, count, goes.float())
    old = rows_at(rows, places)
    return written(rows, places, torch.where(taken, old.float() + mean, old.float()))


def _chosen(taps: Taps, attention: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the dominant rows and the targets, bool ``[B, N]`` each."""
    dominant = top_rows(attention, taps.candidates, taps.keep - count)
    others = taps.candidates & ~dominant
    step = (others.sum(1, keepdim=True) // max(count, 1)).clamp_min(1)
    number = rank_of(others)
    target = others & (number % step == 0) & (number // step < count)
    return dominant, target
