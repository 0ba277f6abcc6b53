"""SparseVLM: text tokens that care for the image rate it; the best of the rest are clustered.

Paper: Zhang et al., "SparseVLM: Visual Token Sparsification for Efficient Vision-Language Model
Inference", ICML 2025, arXiv:2410.04417.  Three stages, behind layers 2, 6 and 15 of 32 (from 0):

    raters    text rows t behind the image with m_t > mean m, m_t = mean_v softmax_t(x_v · x_t),
              x the embeddings that enter the decoder; found once
    score_j   = mean over raters of mean_h A[t, j], the layer's before the site, after the softmax
    recycle   of the dropped the best ⌊0.3 · dropped⌋ + 1 = m rows are clustered into ⌊m / 10⌋ + 1
              by density peaks (``clustering.py``); a cluster's token is the mean of its rows

The paper finds the number to drop from the rank of the rater-by-token matrix, which no static graph
can; this is the released code's list form (v1.5).  Its totals behind the stages, recycled tokens
included, are 309/204/113, 312/117/39 and 82/32/18 of 576: other budgets lie on lines between them.
``keep`` counts kept and recycled rows.

Where we differ: a cluster's token stands where its centre stood, positions are kept (the code puts
them behind the kept tokens and renumbers); density noise is a tie rule; where no text row rates
above the mean, all text behind the image rates; a prompt without text behind the image is rated by
all of its text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.clustering import density_peaks, distances
from tokopt.passes.methods.fold import (
    first_rows,
    has_any,
    rows_at,
    segmented_mean,
    stays,
    written,
)
from tokopt.passes.methods.method import Method, Placement, Setting, Taps
from tokopt.passes.methods.question import question_rows
from tokopt.passes.methods.rows import LOWEST, TINY, several, top_rows
from tokopt.passes.methods.schedules import between, scaled, staged

ENTERING, LAYERS = (3, 7, 16), 32
TOTALS = ((0, 0, 0), (82, 32, 18), (312, 117, 39), (312, 204, 113), (576, 576, 576))
"""Rows behind the three stages, of 576: the published lists, no list below a smaller one."""


def score(taps: Taps) -> Tensor:
    """Return ratings ``[B, N]``, 4 more at kept rows, 2 at centres; at text rows, who rates."""
    text, raters = _raters(taps)
    layer = taps.want_layers("sparsevlm")[-1]
    weight = rows_at(raters.unsqueeze(-1), text).squeeze(-1)
    mass = (several(layer, text).mean(1) * weight.unsqueeze(-1)).sum(1)
    rating = mass / weight.sum(1, keepdim=True).clamp_min(TINY)
    kept, centres = _chosen(taps, rating)
    visual = rating + 4.0 * kept + 2.0 * centres
    return torch.where(taps.candidates, visual, raters)


def combine(taps: Taps, stay: Tensor) -> Tensor:
    """Return the rows that stay, the clusters' means at their centres."""
    rows = rows_at(taps.hidden, stay)
    count = _clusters(taps)[1]
    if not count:
        return rows
    rating = score(taps)
    recycled = (rating >= 2.0) & (rating < 4.0) & taps.candidates
    places = first_rows(recycled.gather(1, stay), count)
    goes = taps.candidates & ~stays(taps, stay)
    pool = top_rows(rating, goes | recycled, _pool(taps))
    centres = rows_at(taps.hidden, stay.gather(1, places))
    nearest = torch.argmin(distances(taps.hidden, centres), dim=-1)
    mean = segmented_mean(taps.hidden, nearest, pool.float(), count)
    several = has_any(nearest, count, (pool & ~recycled).float())
    return written(rows, places, torch.where(several, mean, rows_at(rows, places).float()))


def _raters(taps: Taps) -> tuple[Tensor, Tensor]:
    """Return all rows but the visual ones, int64 ``[B, T]``, and who rates, fp32 ``[B, N]``."""
    rows = taps.candidates.shape[1] - taps.count
    behind = question_rows(taps, "sparsevlm")
    text = first_rows(behind, rows)
    if taps.carried is not None:
        return text, taps.carried.masked_fill(taps.candidates, 0.0)
    assert taps.entry is not None
    visual = rows_at(taps.entry, first_rows(taps.candidates, taps.count)).float()
    logits = visual @ rows_at(taps.entry, text).float().transpose(-2, -1)
    real = behind.gather(1, text)
    shares = torch.softmax(logits.masked_fill(~real.unsqueeze(1), LOWEST), dim=-1)
    mass = shares.mean(1)
    level = (mass * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
    rates = (mass > level) & real
    rates = torch.where(rates.any(1, keepdim=True), rates, real)
    none = torch.zeros_like(taps.candidates, dtype=torch.float32)
    return text, none.scatter(1, text, rates.float())


def _chosen(taps: Taps, rating: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows kept as they are, and the centres of what is recycled, bool ``[B, N]``."""
    kept, count = _clusters(taps)
    best = top_rows(rating, taps.candidates, kept)
    if not count:
        return best, torch.zeros_like(best)
    pool = first_rows(top_rows(rating, taps.candidates & ~best, _pool(taps)), _pool(taps))
    centres = pool.gather(1, density_peaks(rows_at(taps.hidden, pool), count))
    none = torch.zeros_like(best)
    return best, none.scatter(1, centres, torch.ones_like(centres, dtype=torch.bool))


def _clusters(taps: Taps) -> tuple[int, int]:
    """Return how many rows are kept as they are, and how many clusters are made of the others.

    The most kept rows with which the published number of clusters of the rest fits the total.
    """
    for kept in range(taps.keep, -1, -1):
        if kept + _count(taps.count - kept) <= taps.keep:
            return kept, taps.keep - kept
    return 0, taps.keep


def _count(dropped: int) -> int:
    return (dropped * 3 // 10 + 1) // 10 + 1 if dropped else 0


def _pool(taps: Taps) -> int:
    kept, count = _clusters(taps)
    return max((taps.count - kept) * 3 // 10 + 1, count)


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """Three stages whose totals lie between the published lists."""
    scale = setting.count / TOTALS[-1][2]
    totals = between(TOTALS, 2, setting.keep / scale)
    depths = (scaled(setting, entering, LAYERS) for entering in ENTERING)
    return staged(setting, depths, (round(total * scale) for total in totals))


METHOD = Method(
    name="sparsevlm",
    paper="arXiv:2410.04417",
    licence="Apache-2.0",
    cost="O(N²)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"layers", "text", "entry"}),
    notes="attention of the text rows that care for the image; the rest is clustered",
    combine=combine,
)
