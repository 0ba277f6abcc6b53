"""Choose: the selection rule, written once more: what stays of a stage's candidates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.oracle.rows import StreamRows


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


def choose_rows(
    score: Tensor, candidates: Tensor, rows: StreamRows, quota: Sequence[int]
) -> Tensor:
    """Return which rows ``[B, N]`` stay where candidates go and stay in whole groups.

    ``score`` is the same for all rows of a group (``over_groups``); ``quota`` counts rows.
    """
    inside = slice(rows.first, rows.first + rows.count)
    units = candidates[:, inside].unflatten(1, (-1, rows.group)).all(-1)
    values = score[:, inside].unflatten(1, (-1, rows.group))[..., 0]
    stay = torch.ones_like(candidates)
    chosen = choose(values, units, [keep // rows.group for keep in quota])
    stay[:, inside] = chosen.repeat_interleave(rows.group, 1)
    return stay


def over_groups(score: Tensor, rows: StreamRows) -> Tensor:
    """Return a score ``[B, N]`` with the mean of its group at every token row; a NaN is -inf."""
    last = rows.first + rows.count
    tokens = score[:, rows.first : last].unflatten(1, (-1, rows.group))
    means = tokens.mean(-1).repeat_interleave(rows.group, 1)
    joined = torch.cat([score[:, : rows.first], means, score[:, last:]], 1)
    return joined.masked_fill(joined.isnan(), -torch.inf)
