"""Images: which visual rows belong to one image of a prompt, and which text follows it.

An image is a run of candidates with no other row in between; rows that were dropped leave no gap,
so its runs stay the same from stage to stage.  How many there are is data: sums by image have as
many places as there are rows, and no value is a square.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.rows import TINY


def image_numbers(candidates: Tensor) -> Tensor:
    """Return how many images have begun up to each row, less one, int64 ``[B, N]``.

    At a candidate: the number of its image.  At text: that of the image in front of it, -1 before
    the first.
    """
    before = torch.cat([torch.zeros_like(candidates[:, :1]), candidates[:, :-1]], dim=1)
    return (candidates & ~before).long().cumsum(1) - 1


def image_sizes(numbers: Tensor, candidates: Tensor) -> Tensor:
    """Return how many candidates each image has, fp32 ``[B, N]``; 0 where there is no image."""
    none = torch.zeros_like(candidates, dtype=torch.float32)
    return none.scatter_add(1, numbers.clamp_min(0), candidates.float())


def means_by_image(rows: Tensor, numbers: Tensor, among: Tensor) -> Tensor:
    """Return at each row the mean of those of its image's ``among``, fp32 ``[B, N, C]``.

    ``rows`` is ``[B, N, C]``, ``among`` bool ``[B, N]``.  An image that has none gets the mean of
    all of ``among``.
    """
    weight = (among & (numbers >= 0)).float().unsqueeze(-1)
    place = numbers.clamp_min(0).unsqueeze(-1)
    spread = place.expand(rows.shape)
    sums = torch.zeros_like(rows, dtype=torch.float32).scatter_add(1, spread, rows.float() * weight)
    count = torch.zeros_like(weight).scatter_add(1, place, weight).gather(1, place)
    own = sums.gather(1, spread) / count.clamp_min(TINY)
    return torch.where(count > 0, own, mean_of(rows, among))


def mean_of(rows: Tensor, among: Tensor) -> Tensor:
    """Return the mean of some rows, fp32 ``[B, 1, C]``; zeros where there are none."""
    weight = among.float().unsqueeze(-1)
    return (rows.float() * weight).sum(1, keepdim=True) / weight.sum(1, keepdim=True).clamp_min(1)
