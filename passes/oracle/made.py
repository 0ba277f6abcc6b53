"""Made: what methods make of the rows that stay, put back among all rows of the original."""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InternalError
from tokopt.passes.methods.method import Method, Taps


def combined(method: Method, taps: Taps, items: Tensor, left: Tensor, after: Tensor) -> Tensor:
    """Return ``[B, N, C]`` with the rows that stay as the method leaves them."""
    whole = items.clone()
    assert method.combine is not None
    stay = after.gather(1, left).nonzero()[:, 1].view(len(after), -1)
    made = method.combine(taps, stay)
    if made.shape != (*stay.shape, items.shape[-1]):
        raise InternalError(f"{method.name} made rows of shape {tuple(made.shape)}")
    for item, rows in enumerate(left.gather(1, stay)):
        whole[item, rows] = made[item].to(items.dtype)
    return whole


def weighed(method: Method, taps: Taps, left: Tensor, after: Tensor) -> Tensor:
    """Return how many rows each row that stays stands for, ``[B, N]``; 1 at those that are gone."""
    assert method.weigh is not None
    stay = after.gather(1, left).nonzero()[:, 1].view(len(after), -1)
    made = method.weigh(taps, stay)
    if made.shape != stay.shape:
        raise InternalError(f"{method.name} weighs rows in the shape {tuple(made.shape)}")
    whole = torch.ones(after.shape)
    for item, rows in enumerate(left.gather(1, stay)):
        whole[item, rows] = made[item].float()
    return whole
