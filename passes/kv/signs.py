"""Signs: codes of two or three values, with one size per group.

1 bit: ``x^ = +-s`` with ``s = mean |x|``, the least squares fit to the signs.  1.58 bits:
``x^ = s t`` with ``t = 0`` where ``|x| <= mean |x| / 2`` and the sign elsewhere, ``s`` the mean
``|x|`` of those elsewhere, again the least squares fit.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.kv.packing import pack, pack_trits, unpack, unpack_trits


def coded_signs(values: Tensor, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return packed signs (1: not negative) and the size of groups along ``dim`` (kept)."""
    return pack(values >= 0, 1), values.abs().mean(dim, keepdim=True).to(dtype)


def decoded_signs(codes: Tensor, scale: Tensor) -> Tensor:
    """Return the values, fp32."""
    return (unpack(codes, 1).float() * 2 - 1) * scale.float()


def coded_trits(rows: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Return packed codes (sign + 1) and the size of groups along ``dim`` (kept)."""
    values = rows.float()
    size = values.abs()
    large = size > size.mean(dim, keepdim=True) / 2
    count = large.sum(dim, keepdim=True).clamp(min=1)
    scale = (size * large).sum(dim, keepdim=True) / count
    return pack_trits(values.sign() * large + 1), scale.to(rows.dtype)


def decoded_trits(codes: Tensor, scale: Tensor, width: int) -> Tensor:
    """Return the values, fp32 ``[..., width]``."""
    return (unpack_trits(codes, width).float() - 1) * scale.float()
