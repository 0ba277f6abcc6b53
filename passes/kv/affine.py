"""Affine: codes between the least and the largest of a group, with the group's scale and zero.

``s = (max - min) / (2^b - 1)``, ``code = round((x - min) / s)``, ``x^ = s code + min``.  Scale and
zero are stored in half precision, and codes are made with them as stored: what is read back is off
by half a step, and at the largest value by what half precision rounds off the scale besides.  A
group of one value has the scale 0 and comes back as that value.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.kv.packing import pack, unpack


def coded(
    values: Tensor, dims: tuple[int, ...], bits: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Return packed codes, scale and zero of groups that lie along ``dims`` (kept, of size 1).

    ``values`` are fp32; ``dtype`` is what scale and zero are stored in.
    """
    zero = values.amin(dims, keepdim=True).to(dtype)
    most = (1 << bits) - 1
    largest = torch.finfo(dtype).max
    span = values.amax(dims, keepdim=True) - zero.float()
    scale = (span / most).clamp(max=largest).to(dtype)
    step = torch.where(scale > 0, scale.float(), 1.0)
    codes = ((values - zero.float()) / step).round().clamp(0, most)
    return pack(codes, bits), scale, zero


def decoded(codes: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Return the values, fp32; scale and zero broadcast against the unpacked codes."""
    return unpack(codes, bits).float() * scale.float() + zero.float()
