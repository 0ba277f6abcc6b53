"""STC's pruner: of every frame of a stream the tokens that are newest, against frame and memory.

Paper: Wang et al., "Accelerating Streaming Video Large Language Models via Hierarchical Token
Compression", CVPR 2026, arXiv:2512.00891, its second part (code at 9b13ce0).  z are the tokens at
the decoder's entry, scaled to length 1; with f the mean of z over a frame, and g the mean of the
means of all chunks so far, this one included, scaled to length 1:

    s_i = G(‖z_i - f‖²) + G(‖z_i - g‖²),  G(d²) = Σ_a exp(-d² / 2a),  a = 1/8, 1/4, 1/2, 1, 2

The lowest s of every frame stay, as many in each (the first frames one more where the count does
not divide).  A chunk is a call.  Kept from call to call, zeros at first: the mean of the chunks'
means, and how many there were.

Where we differ: all channels are used.  The code drops in every chunk the half of highest variance,
another half each time, so that its memory adds up channels that do not belong together.  Where
anchors are read the released code is followed (a sum of kernels, not the paper's mean of cosines).
The first part, the cacher, is ``stc_cacher``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokopt.passes.methods.fold import normalised, rows_at, segmented_mean
from tokopt.passes.methods.method import FEATURES, ITEMS, Method, Taps
from tokopt.passes.methods.schedules import before_decoder

WIDTHS = (0.125, 0.25, 0.5, 1.0, 2.0)
ABOVE = 11.0
"""Above every s, at most twice five kernels of at most 1."""


def score(taps: Taps) -> Tensor:
    """Return ABOVE - s, more by ABOVE at rows within their frame's share, fp32 ``[B, N]``."""
    places = taps.want_places("stc")
    rows = normalised(taps.hidden)
    inside = (taps.candidates & (places.tile >= 0)).float()
    frames = segmented_mean(rows, places.tile, inside, places.shape[0])
    memory = normalised(_mean(taps, rows)[0])
    alike = _kernel(rows - rows_at(frames, places.tile.clamp_min(0)))
    new = ABOVE - alike - _kernel(rows - memory.unsqueeze(1))
    new = new.masked_fill(inside == 0, 0.0)
    share, more = divmod(taps.keep, places.shape[0])
    quota = share + (places.tile < more).long()
    return new + ABOVE * (_rank(new, places.tile, places.shape[0]) < quota).float() * inside


def remember(taps: Taps, stay: Tensor) -> Mapping[str, Tensor]:
    """Return the mean of the chunks' means and their number, this one included."""
    mean, count = _mean(taps, normalised(taps.hidden))
    return {"mean": mean, "count": count}


def _mean(taps: Taps, rows: Tensor) -> tuple[Tensor, Tensor]:
    items, _, features = rows.shape
    before = taps.kept("count", items, 1)
    inside = taps.candidates.float().unsqueeze(-1)
    own = (rows * inside).sum(1) / inside.sum(1).clamp_min(1)
    held = taps.kept("mean", items, features)
    return held + (own - held) / (before + 1), before + 1


def _kernel(apart: Tensor) -> Tensor:
    square = apart.square().sum(-1)
    return torch.stack([torch.exp(-square / (2 * width)) for width in WIDTHS]).sum(0)


def _rank(values: Tensor, frame: Tensor, frames: int) -> Tensor:
    """Return how many rows of the same frame come before each, int64 ``[B, N]``, highest first."""
    order = torch.sort(values, dim=1, descending=True, stable=True)[1]
    of = frame.gather(1, order).unsqueeze(1) == torch.arange(frames, device=frame.device).view(
        1, -1, 1
    )
    before = ((of.long().cumsum(-1) - 1) * of.long()).sum(1)
    return torch.zeros_like(frame).scatter(1, order, before)


METHOD = Method(
    name="stc",
    paper="arXiv:2512.00891",
    licence="no licence file; its package says Apache",
    cost="O(N)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=before_decoder,
    needs=frozenset({"places"}),
    notes="the newest tokens of every frame, against the frame's mean and that of all before",
    state={"mean": (ITEMS, FEATURES), "count": (ITEMS, 1)},
    remember=remember,
)
