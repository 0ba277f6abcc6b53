"""Mosaic: how the tiles of a picture lie beside each other, told from the order in which rows come.

Any-resolution models show a picture twice: whole, and in tiles that are put together again, line by
line, before they are written into the sequence.  So one tile's rows come in one run, that of the
whole picture, and the others' lines alternate; those that come before one is met again are a line
of tiles.  Where every tile comes in one run (several pictures, tiles one after the other) the order
tells nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby


@dataclass(frozen=True)
class Mosaic:
    """``whole`` is the tile that shows all; the others, ascending, are ``rows`` x ``columns``."""

    whole: int
    rows: int
    columns: int


def find_mosaic(tiles: Sequence[int], count: int) -> Mosaic | None:
    """Return the mosaic of rows that come from ``tiles``, -1 from none (a newline).

    ``count`` tiles there are.  None where the order does not tell one.
    """
    runs = [tile for tile, _ in groupby(tiles) if tile >= 0]
    single = [tile for tile in set(runs) if runs.count(tile) == 1]
    if len(single) != 1 or len(set(runs)) != count:
        return None
    parts = [tile for tile in runs if tile != single[0]]
    columns = next((at for at, tile in enumerate(parts) if tile in parts[:at]), 0)
    ascending = list(dict.fromkeys(parts)) == sorted(set(parts))
    if not columns or not ascending or (count - 1) % columns:
        return None
    return Mosaic(single[0], (count - 1) // columns, columns)
