"""Quota: every crop of an image gets a share of the tokens, and the shares fill the total exactly.

Shares are data, lengths are not: a crop's share says how many of its tokens are raised above all
others, and one top-k over all crops then takes the constant total.  What a crop cannot fill goes to
the best tokens left over, of any crop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.rows import TINY


def quotas(weight: Tensor, total: int) -> Tensor:
    """Return how many tokens each crop gets by its weight ``[B, C]``, ``total`` together, fp32.

    Rounded down; what is left goes, one each, to the crops of largest weight.
    """
    part = weight / weight.sum(1, keepdim=True).clamp_min(TINY)
    quota = (part * total).floor()
    left = total - quota.sum(1, keepdim=True)
    place = torch.sort(part, dim=1, descending=True, stable=True)[1]
    rank = torch.sort(place, dim=1)[1]
    return quota + (rank < left).float()


def by_quota(values: Tensor, crop: Tensor, quota: Tensor) -> Tensor:
    """Return 1 + v/(2 max v) at rows among the best of their crop's share, else v/(2 max v).

    ``values`` are not negative, ``crop`` is int64 ``[B, N]``, -1 (whose score is -1) at rows of no
    crop, ``quota`` ``[B, C]``.  Ties go to the lower row.
    """
    inside = crop >= 0
    ranked = torch.where(inside, values, -1.0)
    order = torch.sort(ranked, dim=1, descending=True, stable=True)[1]
    at = crop.gather(1, order)
    numbers = torch.arange(quota.shape[1], device=crop.device)
    before = (at.unsqueeze(-1) == numbers).long().cumsum(1) - 1
    place = before.gather(2, at.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    rank = torch.zeros_like(crop).scatter(1, order, place)
    granted = rank < quota.gather(1, crop.clamp_min(0))
    most = ranked.amax(1, keepdim=True).clamp_min(TINY)
    return torch.where(inside, granted.float() + 0.5 * values / most, -1.0)
