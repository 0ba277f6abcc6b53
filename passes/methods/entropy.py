"""Entropy of a patch: how much its grey values differ.

256 equal bins between the darkest and the brightest value of the image, so that the same picture
counts the same however it was normalised (VFlowOpt's code casts normalised values to bytes, which
wraps; its paper means raw 8-bit values).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.rows import TINY

BINS = 256


def grey_entropy(patches: Tensor) -> Tensor:
    """Return -Σ p log p of each patch's histogram, in nats, ``[I, N]``.

    ``patches`` are grey values ``[I, N, P]``.
    """
    values = patches.float()
    low, high = values.amin((1, 2), keepdim=True), values.amax((1, 2), keepdim=True)
    share = (values - low) / (high - low).clamp_min(TINY)
    place = (share * BINS).long().clamp(0, BINS - 1)
    counts = torch.zeros(*values.shape[:2], BINS, device=values.device)
    counts = counts.scatter_add(2, place, torch.ones_like(values))
    chance = counts / values.shape[2]
    return -(chance * chance.clamp_min(TINY).log()).sum(-1)
