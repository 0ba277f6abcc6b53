"""attention_rows: the attention of a few queries over all keys, without the full matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.ir.dialect.declare import op

LOWEST = torch.finfo(torch.float32).min
"""Stands for minus infinity: a row in which everything is masked stays finite (and uniform)."""


def _samples() -> list[tuple[Any, ...]]:
    numbers = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, 3, 8, generator=numbers)
    key = torch.randn(2, 2, 7, 8, generator=numbers)
    later = torch.full((7,), LOWEST).masked_fill(torch.arange(7) < 5, 0.0)
    closed = torch.full((2, 1, 1, 7), LOWEST)
    return [
        (query, key, None, 0.35),
        (query, key, later.reshape(1, 1, 1, 7), 0.35),
        (query[:, :, :1].half(), key.half(), closed, 1.0),
    ]


@op(_samples)
def attention_rows(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return post-softmax attention of R queries, fp32 ``[B, H, R, N]``.

    ``query`` is ``[B, H, R, d]``, ``key`` ``[B, G, N, d]``: query heads share key heads in equal
    groups of neighbours.  ``bias`` is fp32, broadcasts to the result and is added to the logits;
    what falls below the lowest finite number is that.  All sums are fp32.
    """
    groups = query.shape[1] // key.shape[1]
    shared = query.float().unflatten(1, (key.shape[1], groups))
    keys = key.float().transpose(-2, -1).unsqueeze(2)
    logits = torch.matmul(shared, keys).flatten(1, 2) * scale
    if bias is not None:
        logits = (logits + bias).clamp_min(LOWEST)
    return torch.softmax(logits, dim=-1)
