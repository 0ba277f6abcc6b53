"""Pools: salient rows and the rest, each dense.

Attention over cached rows is a function of a set, so which rows are in a pool is not stored: keys
and values lie in the same order, and how many rows a pool has follows from the counts.
"""

from __future__ import annotations

import torch
from torch import Tensor


def parted(rows: Tensor, salience: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the ``count`` most salient rows ``[B, H, count, D]``, and the rest.

    Both keep their order; ties go to the lower row.
    """
    ranked = salience.float().sort(dim=2, descending=True, stable=True).indices
    pools = ranked[..., :count], ranked[..., count:]
    high, low = (
        rows.gather(2, pool.sort(dim=2).values.unsqueeze(-1).expand(-1, -1, -1, rows.shape[3]))
        for pool in pools
    )
    return high, low


def together(rows: Tensor, salience: Tensor, count: int) -> Tensor:
    """Return rows in the order of the pools: salient ones first."""
    return torch.cat(parted(rows, salience, count), 2)
