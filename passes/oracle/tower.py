"""Tower: what a decoder's method reads of the tower, from the oracle's own run, a row at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.dims import Dims
from tokopt.ir.layout import lead_axes
from tokopt.ir.places import Places, image_of, tower_places
from tokopt.passes.methods.method import TowerTap
from tokopt.passes.oracle.taps import TapReader, tapped
from tokopt.passes.tower_tap import Feeder


def tower_tap(
    feeder: Feeder,
    dims: Dims,
    seen: Mapping[fx.Node, Any],
    visual: Tensor,
    candidates: Tensor,
    left: Tensor,
) -> TowerTap:
    """Return the tap for rows ``left`` ``[B, K]`` of a sequence, ``candidates`` among them.

    ``visual`` is bool ``[B, N]`` over the rows of the original.
    """
    tower, end, arrival = feeder
    lead = lead_axes(dims.axes[end.value], end.dim, end.tokens)
    layer = tower.stack.layers[-1]
    attention = layer.attention[0]
    whole = TapReader(dims, seen, lead, torch.zeros(0, 0, dtype=torch.int64))
    shape = whole.shape(attention)
    every = torch.arange(shape[1]).expand(shape)
    reader = TapReader(dims, seen, lead, every)
    tap, early = reader.layer(layer, attention), tower.stack.layers[0]
    found = tapped(early, end.tokens)
    first = None if found is None else reader.layer(early, found)
    units, front = end.groups().tolist(), tower.protected
    count = max(units) + 1
    members = [[front + row for row, unit in enumerate(units) if unit == u] for u in range(count)]

    def arrive(values: Tensor, elsewhere: float) -> Tensor:
        found = torch.zeros(left.shape, dtype=values.dtype)
        for item, rows in enumerate(left.tolist()):
            numbers = {row: n for n, row in enumerate(visual[item].nonzero()[:, 0].tolist())}
            for at, row in enumerate(rows):
                if not bool(candidates[item, at]):
                    continue
                unit = int(arrival.units[numbers[row]])
                image = item * len(arrival.reach) + unit // count
                own = values[image, members[unit % count]].mean() if unit >= 0 else elsewhere
                found[item, at] = own
        return found

    inside = torch.zeros(1, shape[1], dtype=torch.bool)
    inside[:, front : front + len(units)] = True
    image, places = image_of(dims, tower.tokens), tower_places(dims, tower.tokens)
    patches = None
    if image is not None and places is not None:
        patches = _patches(seen[image], places, front, shape[1])
    return TowerTap(tap, tower.relay, inside, arrive, patches, first)


def _patches(image: Tensor, places: Places, front: int, rows: int) -> Tensor:
    """Return the grey values of each row's patch, a patch at a time."""
    high, wide = (s // n for s, n in zip(image.shape[2:], places.shape[1:], strict=True))
    grey = image.float().mean(1)
    found = torch.zeros(len(image), rows, high * wide)
    for at, (_, row, column) in enumerate(places.table.tolist()):
        cut = grey[:, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        found[:, front + at] = cut.flatten(1)
    return found
