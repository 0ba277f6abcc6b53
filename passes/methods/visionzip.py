"""VisionZip: keep what the class token looks at, fold the rest into evenly spread tokens.

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
CVPR 2025, arXiv:2412.04467.  One stage at the end of the tower, T = D + C tokens:

    dominant     D tokens of largest  a_j = mean_h A[CLS, j]
    targets      of the others, in order: numbers 0, s, 2s, .. (C-1)s with s = ⌊others / C⌋
    contextual   x_t + mean of the x_j that are nearest to target t by cosine of mean_h k_j

A and k are the last layer's, k without scale.  C = round(10/64 · T): the published splits (54 + 10
at 64, 162 + 30 at 192).  As in the code the mean is added to the target, so a contextual token
has about twice the norm of others.

Where we differ: the code spends one dominant token on CLS itself and puts the contextual tokens
behind the dominant ones, renumbered.  Here the class token stays behind as in the original model,
and every contextual token stands where its target stood.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.fold import (
    first_rows,
    mean_of_assigned,
    nearest,
    rows_at,
    stays,
    written,
)
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import rank_of, relay_attention, top_rows
from tokopt.passes.methods.schedules import tower_end

CONTEXTUAL, OF = 10, 64


def score(taps: Taps) -> Tensor:
    """Return the class token's attention ``[B, N]``, 2 more at dominant rows, 1 more at targets."""
    attention = _attention(taps)
    dominant, target = _chosen(taps, attention)
    return attention + 2.0 * dominant + 1.0 * target


def combine(taps: Taps, stay: Tensor) -> Tensor:
    """Return the rows that stay, the dropped ones folded into the targets among them."""
    rows = rows_at(taps.hidden, stay)
    count = _contextual(taps)
    if not count:
        return rows
    _, target = _chosen(taps, _attention(taps))
    places = first_rows(target.gather(1, stay), count)
    at = stay.gather(1, places)
    metric = taps.want_layers("visionzip")[-1].key.float().mean(1)
    goes = taps.candidates & ~stays(taps, stay)
    to = nearest(metric, rows_at(metric, at), target.gather(1, at))
    mean, taken = mean_of_assigned(taps.hidden, to, count, goes.float())
    old = rows_at(rows, places)
    return written(rows, places, torch.where(taken, old.float() + mean, old.float()))


def _contextual(taps: Taps) -> int:
    return round(CONTEXTUAL * taps.keep / OF)


def _attention(taps: Taps) -> Tensor:
    relay = taps.want_relay("visionzip", "use divprune or dart, which can do without")
    return relay_attention(taps.want_layers("visionzip")[-1], relay)


def _chosen(taps: Taps, attention: Tensor) -> tuple[Tensor, Tensor]:
    """Return the dominant rows and the targets, bool ``[B, N]`` each."""
    count = _contextual(taps)
    dominant = top_rows(attention, taps.candidates, taps.keep - count)
    others = taps.candidates & ~dominant
    step = (others.sum(1, keepdim=True) // max(count, 1)).clamp_min(1)
    number = rank_of(others)
    target = others & (number % step == 0) & (number // step < count)
    return dominant, target


METHOD = Method(
    name="visionzip",
    paper="arXiv:2412.04467",
    licence="Apache-2.0",
    cost="O(N·K)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers", "relay"}),
    notes="class-token attention; the rest is folded into evenly spread tokens",
    combine=combine,
)
