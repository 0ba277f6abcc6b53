"""Choose: the selection rule, written once more: what stays of a stage's candidates."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.oracle.placed import Pool


def choose(score: Tensor, candidates: Tensor, quota: Sequence[int]) -> Tensor:
    """Return which units stay: all that are no candidates, and an item's ``quota`` best that are.

    ``score`` fp32 and ``candidates`` bool are ``[B, U]``, as is the result.  Ties go to the lower
    index.  Raises ``InputError`` where an item has fewer candidates than are to stay.
    """
    stay = ~candidates
    for item, (values, keep) in enumerate(zip(score.tolist(), quota, strict=True)):
        units = candidates[item].nonzero().flatten().tolist()
        if not 0 <= keep <= len(units):
            raise InputError(f"{keep} of {len(units)} visual tokens that may go cannot stay")
        best = sorted(units, key=lambda unit: (-values[unit], unit))[:keep]
        stay[item, best] = True
    return stay


def choose_rows(score: Tensor, candidates: Tensor, table: Tensor, quota: Sequence[int]) -> Tensor:
    """Return which rows ``[B, N]`` stay where candidates go and stay in whole groups.

    ``table`` is ``[groups, rows per group]``: the rows of each group.  ``score`` is the same for
    all rows of a group (``over_groups``); ``quota`` counts rows.
    """
    units = candidates[:, table].all(-1)
    values = score[:, table[:, 0]]
    stay = torch.ones_like(candidates)
    chosen = choose(values, units, [keep // table.shape[1] for keep in quota])
    stay[:, table] = chosen.unsqueeze(-1).expand(-1, -1, table.shape[1])
    return stay


def choose_among(score: Tensor, pools: Sequence[Sequence[Pool]], table: Tensor) -> Tensor:
    """Return which rows ``[B, N]`` stay where the rows of each pool of an item compete."""
    stay = torch.ones_like(score, dtype=torch.bool)
    for item, competing in enumerate(pools):
        for pool in competing:
            values, rows = score[item : item + 1], pool.rows.unsqueeze(0)
            stay[item] &= choose_rows(values, rows, table, [pool.keep])[0]
    return stay


def over_groups(score: Tensor, table: Tensor) -> Tensor:
    """Return a score ``[B, N]`` with the mean of its group at every grouped row; a NaN is -inf."""
    joined = score.clone()
    joined[:, table] = score[:, table].mean(-1, keepdim=True).expand(-1, -1, table.shape[1])
    return joined.masked_fill(joined.isnan(), -torch.inf)


def groups_of(lengths: Sequence[int], whole: Sequence[bool], first: int) -> Tensor:
    """Return the rows of each group, ``[groups, rows per group]``, groups by their first row.

    Rows from ``first`` on count through ``lengths``, the last fastest; those that differ only in
    ``whole`` places are a group.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for row in range(prod(lengths)):
        left, place = row, []
        for length, stays in zip(reversed(lengths), reversed(whole), strict=True):
            left, at = divmod(left, length)
            place.append(0 if stays else at)
        groups.setdefault(tuple(place), []).append(first + row)
    return torch.tensor([*groups.values()])
