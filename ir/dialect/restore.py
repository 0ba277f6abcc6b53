"""restore: put the kept rows back at their places in a dim of full length."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.ir.dialect.declare import op


def _samples() -> list[tuple[Any, ...]]:
    x = torch.arange(2 * 2 * 3, dtype=torch.float32).reshape(2, 2, 3) + 1
    index = torch.tensor([[0, 2], [1, 4]])
    return [
        (x, index, 5, 1, [0]),
        (x[0], index[0], 5, 0, []),
        (x.transpose(0, 1), index, 5, 0, [1]),
    ]


@op(_samples)
def restore(x: Tensor, index: Tensor, length: int, dim: int, lead: list[int]) -> Tensor:
    """Return ``x`` with dim ``dim`` of size ``length``: row ``index[…, k]`` is row k, others 0.

    ``index`` is int64 ``[*L, K]`` ascending, ``lead[i]`` the dim of ``x`` that runs with ``L[i]``.
    Dropped rows are filled with 0: the documented fill value of full-length outputs.
    """
    shape = list(x.shape)
    shape[dim] = length
    target = [1] * x.dim()
    for position, d in enumerate(lead):
        target[d] = index.shape[position]
    target[dim] = index.shape[-1]
    order = sorted([*lead, dim])
    source = [([*lead, dim]).index(d) for d in order]
    places = index.permute(source).reshape(target).expand(x.shape)
    return x.new_zeros(shape).scatter(dim, places, x)
