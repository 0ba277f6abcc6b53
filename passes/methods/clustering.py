"""Clustering by density peaks among k nearest neighbours, every size constant.

Source: Du et al., "Study on density peaks clustering based on k-nearest neighbors and principal
component analysis", Knowledge-Based Systems 99, 2016, in the form SparseVLM uses:

    ρ_i = exp(-mean over the k nearest, i itself included, of d²_ij),  d_ij = ‖x_i - x_j‖ / √D
    δ_i = min d_ij over the j of higher density;  the largest distance where there is none
    centres = the rows of largest ρ_i · δ_i;  the others go to the nearest centre

Ties: the earlier row is denser, comes first, and takes the row in (published: random noise).
"""

from __future__ import annotations

import torch
from torch import Tensor


def density_peaks(rows: Tensor, count: int) -> Tensor:
    """Return ``count`` centres of ``[B, M, D]`` with k = ``count``, ascending ``[B, count]``."""
    number = torch.arange(rows.shape[1], device=rows.device)
    same = number == number.unsqueeze(-1)  # the product leaves a rest there
    apart = distances(rows, rows).masked_fill(same, 0.0)
    near = torch.sort(apart, dim=-1)[0].narrow(-1, 0, count)
    density = torch.exp(-near.square().mean(-1))
    higher = density.unsqueeze(1) > density.unsqueeze(2)
    equal = density.unsqueeze(1) == density.unsqueeze(2)
    denser = higher | (equal & (number < number.unsqueeze(-1)))
    largest = apart.amax((1, 2), keepdim=True)
    peak = torch.where(denser, apart, largest).amin(-1) * density
    best = torch.sort(peak, dim=1, descending=True, stable=True)[1].narrow(1, 0, count)
    return torch.sort(best, dim=1)[0]


def distances(of: Tensor, to: Tensor) -> Tensor:
    """Return Euclidean distances over √D, fp32 ``[B, M, C]``, by one product."""
    of, to = of.float(), to.float()
    squares = of.square().sum(-1, keepdim=True) + to.square().sum(-1).unsqueeze(1)
    both = of @ to.transpose(-2, -1)
    return ((squares - 2 * both).clamp_min(0) / of.shape[-1]).sqrt()
