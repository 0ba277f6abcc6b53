"""Prompts with image placeholders: one run of them per item, at a different place in each."""

from __future__ import annotations

import torch
from torch import Tensor


def prompts(
    batch: int, length: int, *, visual: int, token: int, vocabulary: int, seed: int
) -> Tensor:
    """Return ids ``[batch, length]`` (int64), ``visual`` placeholders ``token`` in each row.

    Text ids lie in ``[3, vocabulary)``; ``token`` must not.  At least one text token stands on
    each side of the image.
    """
    assert token >= vocabulary and length >= visual + 2
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, vocabulary, (batch, length), generator=generator)
    room = length - visual - 1  # the last offset that leaves one text token behind the image
    for item in range(batch):
        start = 1 + (2 + 3 * item) % room
        ids[item, start : start + visual] = token
    return ids
