"""Reductions: dead entries are left out, as if the set were smaller.

One rule serves both readings.  Over tokens some entries are dead, and the result is that of those
alive.  Over the features of a dropped row all entries are dead, and so is the result.  A row is
never dead in part (stages drop whole rows), so the two cannot be confused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import bare, bury, dead_entries, filled
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.table import rule


def reduced_dims(dim: Any, rank: int) -> tuple[int, ...]:
    """Return a ``dim`` argument (int, list, or None for all) as non-negative ints."""
    if dim is None or (isinstance(dim, (list, tuple)) and not dim):
        return tuple(range(rank))
    dims: Sequence[int] = [dim] if isinstance(dim, int) else dim
    return tuple(d % max(rank, 1) for d in dims)


def _setting(call: Operation) -> tuple[Tensor, Tensor, tuple[int, ...], bool]:
    value = call.get(call.main)
    dead = dead_entries(value)
    assert dead is not None, "a rule is called only where an operand has dead entries"
    tensor = bare(value)
    return tensor, dead, reduced_dims(call.get("dim"), tensor.ndim), bool(call.get("keepdim"))


def _without(call: Operation, neutral: float | bool) -> Any:
    value = call.get(call.main)
    _, dead, dims, keep = _setting(call)
    return bury(call.run({call.main: filled(value, neutral)}), dead.all(dims, keepdim=keep))


@rule("sum", "nansum", "any", "count_nonzero")
def add_up(call: Operation) -> Any:
    """Add nothing for an absent entry."""
    return _without(call, 0)


@rule("prod", "all")
def multiply_up(call: Operation) -> Any:
    """Multiply by one for an absent entry."""
    return _without(call, 1)


@rule("amax", "logsumexp")
def largest(call: Operation) -> Any:
    """Take an absent entry to be below all others."""
    dtype = bare(call.get(call.main)).dtype
    return _without(call, -torch.inf if dtype.is_floating_point else torch.iinfo(dtype).min)


@rule("amin")
def smallest(call: Operation) -> Any:
    """Take an absent entry to be above all others."""
    dtype = bare(call.get(call.main)).dtype
    return _without(call, torch.inf if dtype.is_floating_point else torch.iinfo(dtype).max)


@rule("norm", "linalg_vector_norm")
def norm(call: Operation) -> Any:
    """Take an absent entry to be zero, for the orders where zeros do not count."""
    order = call.get("ord", call.get("p", 2))
    if order is not None and (order == 0 or order < 0):
        raise call.refuse(f"a norm of order {order} counts zeros")
    return _without(call, 0)


@rule("mean", "nanmean")
def mean(call: Operation) -> Any:
    """Divide the sum of the entries alive by their number."""
    tensor, dead, dims, keep = _setting(call)
    dtype = call.get("dtype")
    total = filled(tensor, 0).sum(dims, keepdim=keep, dtype=dtype)
    return bury(total / (~dead).sum(dims, keepdim=keep), dead.all(dims, keepdim=keep))


@rule("var", "std", "var_mean", "std_mean")
def variance(call: Operation) -> Any:
    """Squared distances from the mean of the entries alive, over their number less a correction."""
    tensor, dead, dims, keep = _setting(call)
    correction = call.get("correction", 1 if call.get("unbiased", True) else 0)
    correction = 1 if correction is None else correction
    number = (~dead).sum(dims, keepdim=True)
    middle = filled(tensor, 0).sum(dims, keepdim=True) / number
    squares = (tensor - middle).square().masked_fill(dead, 0).sum(dims, keepdim=True)
    spread = squares / (number - correction).clamp(min=0)
    if call.name.startswith("std"):
        spread = spread.sqrt()
    if not keep:
        spread, middle = (part.squeeze(dims) for part in (spread, middle))
    gone = dead.all(dims, keepdim=keep)
    both = bury(spread, gone), bury(middle, gone)
    return both if call.name.endswith("mean") else both[0]


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax")
def softmax(call: Operation) -> Any:
    """Give an absent entry no weight; where all are absent the row is."""
    value = call.get(call.main)
    return bury(call.run({call.main: filled(value, -torch.inf)}), dead_entries(value))
