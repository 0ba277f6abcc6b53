"""Grouping: rows that leave in groups whose members are not neighbours, as one table.

Traced into the graph, so everything is computed from counts: which group a row of the original is
in, the table ``[groups, rows per group]`` of the rows there are now, means over it, and back from
chosen groups to rows.  Rows are those of the token axis, groups are numbered in order.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.sites import Site


def group_table(site: Site, values: Tensor, origin: Tensor | None) -> Tensor:
    """Return int64 ``[B, groups, rows per group]``: the rows of each group, ascending.

    ``values`` is ``[B, N]`` over the rows there are now; ``origin`` their rows in the original.
    """
    if origin is None:
        lengths = [int(axis.length) for axis in site.grid]
        leaves = [axis in site.unit for axis in site.grid]
        order = sorted(range(len(lengths)), key=lambda dim: not leaves[dim])
        rows = torch.arange(values.shape[1], device=values.device).reshape(lengths)
        return rows.permute(order).reshape(1, -1, site.group).expand(values.shape[0], -1, -1)
    numbers = site.groups(values.device)[origin]
    return torch.sort(numbers, dim=1, stable=True)[1].unflatten(1, (-1, site.group))


def group_means(values: Tensor, table: Tensor) -> Tensor:
    """Return the mean of each group's values, ``[B, groups]``."""
    return values.gather(1, table.flatten(1)).unflatten(1, table.shape[1:]).mean(-1)


def rows_of_groups(table: Tensor, chosen: Tensor) -> Tensor:
    """Return the rows of chosen groups ``[B, K]``, int64 ``[B, K * rows per group]``, ascending."""
    index = chosen.unsqueeze(-1).expand(-1, -1, table.shape[-1])
    return torch.sort(table.gather(1, index).flatten(1), dim=1)[0]


def numbers_now(table: Tensor) -> Tensor:
    """Return which of the groups there are now each row is in, int64 ``[B, N]``."""
    return torch.argsort(table.flatten(1), dim=1) // table.shape[-1]
