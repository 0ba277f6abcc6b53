"""segmented_mean: rows that belong together become one, their weighted mean."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.ir.dialect.declare import op

TINY = torch.finfo(torch.float32).tiny
"""The least that is divided by: a segment without weight is zeros."""


def _samples() -> list[tuple[Any, ...]]:
    values = torch.arange(2 * 5 * 3, dtype=torch.float32).reshape(2, 5, 3)
    target = torch.tensor([[0, 1, 1, 2, 0], [2, 2, 2, 0, 0]])
    weight = torch.tensor([[1.0, 1.0, 3.0, 0.0, 2.0], [0.5, 0.25, 0.25, 1.0, 0.0]])
    return [
        (values, target, weight, 3),
        (values.half(), target.masked_fill(weight == 0, -1), weight.ceil(), 4),
        (values[:1, :, :1], target[:1], torch.zeros(1, 5), 3),
    ]


@op(_samples)
def segmented_mean(values: Tensor, target: Tensor, weight: Tensor, count: int) -> Tensor:
    """Return the weighted mean of the rows of each of ``count`` segments, fp32 ``[B, count, C]``.

    ``values`` is ``[B, N, C]``, finite; ``target`` int64 ``[B, N]`` names each row's segment,
    ``weight`` fp32 ``[B, N]`` is not negative.  Rows of weight 0, or of a target that is no
    segment, belong to none; a segment without rows is zeros.  All sums are fp32.
    """
    torch._check(
        values.shape[:2] == target.shape and target.shape == weight.shape,
        lambda: "segmented_mean: values, target and weight differ in items or rows",
    )
    numbers = torch.arange(count, device=target.device).reshape(1, -1, 1)
    shares = (target.unsqueeze(1) == numbers) * weight.unsqueeze(1)
    return (shares @ values.float()) / shares.sum(-1, keepdim=True).clamp_min(TINY)
