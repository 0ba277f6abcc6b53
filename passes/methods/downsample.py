"""Down-sampling: a control.  The grid of patches is averaged to a coarser one, nothing is chosen.

Every tile (image, crop, frame) gets an equal share of the tokens, T.  Its H x W places become h
bands of whole lines, h = √(T · H/W) rounded, and each band T/h cells side by side; where T is no
multiple of h the first bands get one more.  So any count is met exactly, and where h divides H
and T/h divides W this is average pooling.

    x_cell = mean of the x_j in the cell, where the first of them stood

The other controls, random and stride, keep tokens as they are.  Rows without a place (newlines) go.
"""

from __future__ import annotations

from math import sqrt

import torch
from torch import Tensor

from tokopt.passes.methods.fold import rows_at, segmented_mean
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.schedules import before_decoder


def score(taps: Taps) -> Tensor:
    """Return 1 at the first row of each cell, else 0, fp32 ``[B, N]``."""
    cell = _cells(taps)
    numbers = torch.arange(taps.keep, device=cell.device).unsqueeze(-1)
    member = cell.unsqueeze(1) == numbers
    first = member & (member.long().cumsum(-1) == 1)
    return first.any(1).float()


def combine(taps: Taps, stay: Tensor) -> Tensor:
    """Return the rows that stay, each the mean of its cell."""
    cell = _cells(taps)
    inside = (cell >= 0).float()
    mean = segmented_mean(taps.hidden, cell, inside, taps.keep)
    rows, at = rows_at(taps.hidden, stay), cell.gather(1, stay)
    alone = (cell.unsqueeze(1) == at.unsqueeze(-1)).sum(-1) == 1
    cells = rows_at(mean, at.clamp_min(0)).to(rows.dtype)
    return torch.where(((at < 0) | alone).unsqueeze(-1), rows, cells)


def _cells(taps: Taps) -> Tensor:
    """Return the cell of each row, 0 .. keep - 1, int64 ``[B, N]``; -1 at rows without a place."""
    places = taps.want_places("downsample")
    tiles, height, width = places.shape
    share, more = divmod(taps.keep, tiles)
    bands = _bands(share, share + (more > 0), height, width)
    tokens = share + (places.tile < more).long()
    before = places.tile * share + places.tile.clamp_max(more)
    band = places.row * bands // height
    each, left = tokens // bands, tokens % bands
    across = (each + (band < left).long()).clamp_min(1)
    cell = before + band * each + torch.minimum(band, left) + places.column * across // width
    return torch.where((places.tile >= 0) & (tokens > 0), cell, -1)


def _bands(least: int, most: int, height: int, width: int) -> int:
    """Return the bands of tiles that get ``least`` or ``most`` tokens: none wider than the grid."""
    wanted = round(sqrt(most * height / width))
    return min(max(wanted, -(-most // width)), height, max(least, 1))


METHOD = Method(
    name="downsample",
    paper="control",
    licence="no other code",
    cost="O(N·K)",
    roles=frozenset({"vision", "decoder"}),
    score=score,
    schedule=before_decoder,
    needs=frozenset({"places"}),
    notes="average pooling of the grid of patches to the count",
    combine=combine,
)
