"""Received: the attention that rows get from many queries, summed without the square matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.fold import first_rows
from tokopt.passes.methods.method import LayerTap
from tokopt.passes.methods.rows import several

BLOCK = 64
"""Query rows that are asked at once: ``[B, H, BLOCK, N]`` is the largest value there is."""


def received(layer: LayerTap, candidates: Tensor, count: int, everyone: bool) -> Tensor:
    """Return the mean over queries and heads of the attention each row gets, fp32 ``[B, N]``.

    Attention is after the softmax.  Queries are the ``candidates``, bool ``[B, N]``, at most
    ``count`` of an item; with ``everyone`` the other rows too, all at once.
    """
    rows = candidates.shape[1]
    order = first_rows(candidates, rows)
    asked = list(order.narrow(1, 0, count).split(BLOCK, 1))
    if everyone and count < rows:
        asked.append(order.narrow(1, count, rows - count))
    weight = torch.ones_like(candidates) if everyone else candidates
    mass = torch.zeros_like(candidates, dtype=torch.float32)
    for block in asked:
        share = several(layer, block).mean(1)
        mass = mass + (share * weight.gather(1, block).unsqueeze(-1)).sum(1)
    return mass / weight.sum(1, keepdim=True).clamp_min(1)
