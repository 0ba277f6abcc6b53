"""Places: where in its image each visual row comes from.

A tower's token axis is a product of factors.  Where some of them are the height of a convolution's
result (or of an input that is cut into patches by views) and the others its width, every row has a
place in a grid.  Rows of a sequence have that of the tower row that arrives in them (arrival.py).
Patches that are packed into one dim before they come in have no place that a graph could tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims, arguments_of, operator_name
from tokopt.ir.errors import InputError
from tokopt.ir.given import is_float
from tokopt.ir.mosaic import Mosaic, find_mosaic


@dataclass(frozen=True)
class Places:
    """For each visual row of one item: its tile (image, crop or frame), row and column there.

    int64 ``[N]`` each (a method sees ``[B, N]``), -1 where a row is no patch (a newline).
    ``shape`` counts tiles, rows and columns of a tile.  ``mosaic``: how tiles of one picture lie
    beside each other, where the order of the rows tells it.
    """

    tile: Tensor
    row: Tensor
    column: Tensor
    shape: tuple[int, int, int]
    mosaic: Mosaic | None = None

    @property
    def table(self) -> Tensor:
        """All three as ``[N, 3]``."""
        return torch.stack([self.tile, self.row, self.column], dim=-1)

    def seen(self, table: Tensor) -> Places:
        """Return places of other rows: ``[..., 3]``."""
        tile, row, column = table.unbind(-1)
        return Places(tile, row, column, self.shape, self.mosaic)


def stated_places(grid: str, count: int) -> Places:
    """Return the places that a person stated as ``HxW`` or ``TxHxW``: rows in raster order.

    Raises ``InputError`` where that is no grid, or not one of ``count`` rows.
    """
    numbers = grid.lower().split("x")
    if len(numbers) not in (2, 3) or not all(n.isdecimal() and int(n) for n in numbers):
        raise InputError(f"grid = {grid!r}", expected="rows x columns, such as 24x24, or 4x24x24")
    tiles, height, width = [1, *map(int, numbers)][-3:]
    if tiles * height * width != count:
        raise InputError(
            f"grid = {grid!r} has {tiles * height * width} places", expected=f"{count} visual rows"
        )
    number = torch.arange(count)
    rows = number // width
    return Places(rows // height, rows % height, number % width, (tiles, height, width))


def tower_places(dims: Dims, tokens: Axis) -> Places | None:
    """Return the places of a tower's rows, or None where its graph does not tell them."""
    primes = tokens.primes()
    node = _image_node(dims, primes)
    if node is None:
        return None
    found = _along(dims, node, primes)
    lengths = [int(axis.length) for axis in primes]
    each = torch.meshgrid([torch.arange(length) for length in lengths], indexing="ij")
    number = {id(axis): values.flatten() for axis, values in zip(primes, each, strict=True)}

    def joined(axes: list[Axis]) -> Tensor:
        total = torch.zeros(prod(lengths), dtype=torch.int64)
        for axis in axes:
            total = total * int(axis.length) + number[id(axis)]
        return total

    *outer, rows, columns = found
    tile = [axis for axes in outer for axis in axes]
    shape = tuple(prod(int(a.length) for a in axes) for axes in (tile, rows, columns))
    return Places(joined(tile), joined(rows), joined(columns), (shape[0], shape[1], shape[2]))


def arrived_places(tower: Places, units: Tensor, arrived: Tensor) -> Places:
    """Return the places of a sequence's visual rows.

    ``units``: which unit (row, or group that leaves together) each tower row is in, ``[N]``;
    ``arrived``: per visual row the unit it came from, over the tower items of one sequence, -1:
    none.  A unit of several rows is one place of a coarser grid.
    """
    count = int(units.max()) + 1
    first = torch.full((count,), len(units)).scatter_reduce(
        0, units, torch.arange(len(units)), "amin"
    )
    table = tower.table[first]
    table[:, 1], rows = _dense(table[:, 1])
    table[:, 2], columns = _dense(table[:, 2])
    known = arrived >= 0
    at = table[arrived.clamp_min(0) % count]
    at[:, 0] += arrived.clamp_min(0) // count * tower.shape[0]
    at = torch.where(known.unsqueeze(1), at, -1)
    tiles = (int(arrived.max()) // count + 1) * tower.shape[0]
    mosaic = find_mosaic(at[:, 0].tolist(), tiles)
    return Places(at[:, 0], at[:, 1], at[:, 2], (tiles, rows, columns), mosaic)


def _dense(numbers: Tensor) -> tuple[Tensor, int]:
    """Return each number's rank among the different ones, and how many there are."""
    different, rank = torch.unique(numbers, return_inverse=True)
    return rank, len(different)


def image_of(dims: Dims, tokens: Axis) -> fx.Node | None:
    """Return the image ``[I, C, H, W]`` that a tower's rows are patches of; None: not known.

    Its patches touch and do not overlap.
    """
    node = _image_node(dims, tokens.primes())
    if node is None:
        return None
    if node.op == "placeholder":
        return node if len(dims.axes[node]) == 4 and node not in dims.learned else None
    given = arguments_of(node)
    kernel = given["weight"].meta["val"].shape[2:]
    stride, padding = given.get("stride", [1]), given.get("padding", [0])
    whole = list(stride) == list(kernel) and not any(padding) and len(kernel) == 2
    return given["input"] if whole else None


def _image_node(dims: Dims, primes: list[Axis]) -> fx.Node | None:
    """Return the first value along whose dims a token axis's factors lie apart."""
    if any(not isinstance(axis.length, int) for axis in primes):
        return None
    for node in dims.axes:
        image = node.op == "placeholder" and is_float(node)
        if not image and "conv" not in operator_name(node):
            continue
        along = _along(dims, node, primes)
        if len(along) > 1 and sum(len(axes) for axes in along) == len(primes):
            return node
    return None


def _along(dims: Dims, node: fx.Node, primes: list[Axis]) -> list[list[Axis]]:
    """Return the factors that are along each dim of a value, dims without any left out."""
    found = [[p for p in axis.primes() if p in primes] for axis in dims.axes[node]]
    return [axes for axes in found if axes]
