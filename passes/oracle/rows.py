"""Rows: how one value of a stream is seen as ``[items, rows, features]``, whatever its layout."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.dims import Dims
from tokopt.ir.errors import UnsupportedError
from tokopt.passes.oracle.sizes import Sizes


@dataclass(frozen=True)
class StreamRows:
    """The rows of a value along ``dim``.

    Every other dim but ``feature`` counts items, and so does ``outer`` where the dim holds the rows
    of several items.  Per item, the token axis is rows ``first .. first + count``, in units of
    ``group``.  ``lead`` are the axes that count items.
    """

    dim: int
    feature: int
    outer: int
    first: int
    count: int
    group: int
    lead: tuple[Axis, ...]

    def items(self, value: Tensor) -> Tensor:
        """Return a value as ``[B, N, C]``."""
        value = value.movedim((self.dim, self.feature), (-2, -1))
        rows, features = value.shape[-2] // self.outer, value.shape[-1]
        return value.reshape(-1, rows, features)

    def bury(self, value: Tensor, dead: Tensor) -> Tensor:
        """Return a value with NaN in the rows of ``dead``, bool ``[B, N]``."""
        shape = list(value.shape)
        lead = [s for d, s in enumerate(shape) if d not in (self.dim, self.feature)]
        mask = dead.reshape(*lead, shape[self.dim], 1)
        mask = mask.movedim((-2, -1), (self.dim, self.feature))
        return value.masked_fill(mask, torch.nan)

    def replaced(self, value: Tensor, items: Tensor) -> Tensor:
        """Return a value whose ``items`` view is the one given: the way back."""
        shape = list(value.movedim((self.dim, self.feature), (-2, -1)).shape)
        return items.reshape(shape).movedim((-2, -1), (self.dim, self.feature))

    def of_tokens(self, rows: int) -> Tensor:
        """Return which of an item's ``rows`` are of the token axis, bool ``[N]``."""
        place = torch.arange(rows)
        return (place >= self.first) & (place < self.first + self.count)


def stream_rows(dims: Dims, node: fx.Node, dim: int, tokens: Axis, sizes: Sizes) -> StreamRows:
    """Return how ``node``'s rows along ``dim`` hold the token axis."""
    axes = [axis.root for axis in dims.axes[node]]
    feature = len(axes) - 1 if dim != len(axes) - 1 else len(axes) - 2
    place = locate(axes[dim], tokens)
    if place is None:
        raise UnsupportedError(f"the value {node.name} does not hold the token axis of its stage")
    outer, first, group = 1, 0, 1
    lead = [axis for d, axis in enumerate(axes) if d not in (dim, feature)]
    for kind, children, index in place.path:
        lengths = [sizes.number(child.length) for child in children]
        before, behind = lengths[:index], lengths[index + 1 :]
        if kind == "+":
            first += sum(before)
        elif prod(before) > 1 and first:
            raise UnsupportedError(f"rows of {node.name} lie in several ranges of each item")
        else:
            outer *= prod(before)
            lead += children[:index]
            group *= prod(behind)
    count = sizes.number(tokens.root.length) * group
    return StreamRows(dim, feature, outer, first, count, group, tuple(lead))
