"""Rotation: the real discrete Fourier transform as an orthogonal matrix.

A query and a key turned by the same orthogonal matrix have the same product.  Turning spreads what
one channel holds over all, which 1-bit codes need: they have one size for all values of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fourier(width: int) -> Tensor:
    """Return the orthonormal basis of cosines and sines as columns, fp32 ``[width, width]``."""
    place = torch.arange(width, dtype=torch.float64)
    columns = [torch.full((width,), width**-0.5, dtype=torch.float64)]
    for wave in range(1, width // 2 + 1):
        angle = 2 * torch.pi * wave * place / width
        if 2 * wave == width:
            columns.append(angle.cos() / width**0.5)
        else:
            columns += [angle.cos() * (2 / width) ** 0.5, angle.sin() * (2 / width) ** 0.5]
    return torch.stack(columns, 1).float()
