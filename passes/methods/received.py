"""Received: the attention that rows get from many queries, summed without the square matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.fold import first_rows
from tokopt.passes.methods.method import LayerTap, Taps

BLOCK = 64
"""Query rows that are asked at once: ``[B, H, BLOCK, N]`` is the largest value there is."""


def received(layer: LayerTap, taps: Taps, everyone: bool) -> Tensor:
    """Return the mean over queries and heads of the attention each row gets, fp32 ``[B, N]``.

    Attention is after the softmax.  Queries are the candidates; with ``everyone`` all rows.
    """
    rows = taps.candidates.shape[1]
    order = first_rows(taps.candidates, rows)
    asked = list(order.narrow(1, 0, taps.count).split(BLOCK, 1))
    if everyone:
        asked.append(order.narrow(1, taps.count, rows - taps.count))
    weight = torch.ones_like(taps.candidates) if everyone else taps.candidates
    attention = layer.rows
    assert attention is not None
    mass = torch.zeros_like(taps.candidates, dtype=torch.float32)
    for block in asked:
        mass = mass + (attention(block).mean(1) * weight.gather(1, block).unsqueeze(-1)).sum(1)
    return mass / weight.sum(1, keepdim=True).clamp_min(1)
