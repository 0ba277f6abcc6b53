"""Fold: what merging and recycling share: who goes, who takes whom in, and means without loops.

A fold is a matrix of weights ``[B, K, N]``, from every row to the rows that stay; K counts targets
only where few rows take others in, so no ``N x N`` value appears.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.dialect import OPS
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.rows import TINY

segmented_mean = OPS["segmented_mean"].overload
"""``tokopt::segmented_mean``: what merging and recycling add up."""


def stays(taps: Taps, stay: Tensor) -> Tensor:
    """Return which rows stay, bool ``[B, N]``, from their numbers ``[B, K]``."""
    none = torch.zeros_like(taps.candidates)
    return none.scatter(1, stay, torch.ones_like(stay, dtype=torch.bool))


def rows_at(values: Tensor, index: Tensor) -> Tensor:
    """Return rows ``index`` ``[B, K]`` of ``[B, N, C]``."""
    return values.gather(1, index.unsqueeze(-1).expand(-1, -1, values.shape[-1]))


def first_rows(marked: Tensor, count: int) -> Tensor:
    """Return the first ``count`` rows that are marked in bool ``[B, N]``, ascending ``[B, count]``.

    Where an item has fewer, rows that are not marked follow; ``marked`` tells them.
    """
    order = torch.sort((~marked).to(torch.int64), dim=1, stable=True)[1]
    return order.narrow(1, 0, count)


def nearest(of: Tensor, to: Tensor, allowed: Tensor) -> Tensor:
    """Return which row of ``to`` ``[B, C, d]`` is nearest by cosine, ``[B, N]``, for each ``of``.

    ``allowed`` is bool ``[B, C]``.  Ties go to the lower number.
    """
    alike = normalised(of) @ normalised(to).transpose(-2, -1)
    return torch.argmax(alike.masked_fill(~allowed.unsqueeze(1), -2.0), dim=-1)


def normalised(values: Tensor) -> Tensor:
    """Return rows ``[…, d]`` scaled to length 1, fp32; a row of zeros stays one."""
    whole = values.float()
    return whole / whole.square().sum(-1, keepdim=True).sqrt().clamp_min(TINY)


def has_any(target: Tensor, count: int, weight: Tensor) -> Tensor:
    """Return which of ``count`` segments have a row of some weight, bool ``[B, C, 1]``.

    ``target`` and ``weight`` are those of ``segmented_mean``.
    """
    numbers = torch.arange(count, device=target.device).reshape(1, -1, 1)
    own = (target.unsqueeze(1) == numbers) & (weight > 0).unsqueeze(1)
    return own.any(-1, keepdim=True)


def written(rows: Tensor, places: Tensor, values: Tensor) -> Tensor:
    """Return ``[B, K, C]`` with ``values`` ``[B, C', C]`` in the rows ``places`` ``[B, C']``."""
    index = places.unsqueeze(-1).expand(-1, -1, rows.shape[-1])
    return rows.scatter(1, index, values.to(rows.dtype))
