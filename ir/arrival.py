"""Arrival: which rows of a tower come to the sequence they are written into, and how often.

Between the two, rows may be dropped (padding that is cropped off), repeated, and joined by rows
from elsewhere (a learned newline behind each line of patches).  All this is geometry, known when
compiling: every row gets its number as a label, and the movements are replayed on the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.dims import Dims, describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.labels import Labels
from tokopt.ir.layout import lead_axes
from tokopt.ir.lengths import Length
from tokopt.ir.region import Region
from tokopt.ir.sites import Site


@dataclass(frozen=True)
class Arrival:
    """What one item of a sequence gets from a tower.

    ``reach``: bool ``[items, units]``, the units of the tower's items that arrive, each ``copies``
    rows of the sequence; ``others``: rows of the merged span that come from elsewhere.  ``holes``:
    dropped rows arrive as holes; otherwise they are gone before.  ``units``: per row of the span
    the unit it came from, int64, -1 for rows from elsewhere.
    """

    reach: Tensor
    copies: int
    others: int
    holes: bool
    units: Tensor

    def rows(self, kept: int) -> int:
        """Return the rows that arrive when ``kept`` units of each tower item stay.

        Units that do not arrive are the first to be dropped.
        """
        return self.others + self.copies * int(self.reach.sum(1).clamp_max(kept).sum())


def arrival(
    exported: ExportedProgram,
    dims: Dims,
    region: Region,
    site: Site,
    target: fx.Node,
    width: Length,
    items: Length,
    holes: bool,
    dim: int | None = None,
) -> Arrival:
    """Return how the units of a site (rows, or groups that leave together) arrive at ``target``.

    The rows of ``target``, of ``width`` elements each, are written into ``items`` sequences as they
    lie, or are read as its items, whose rows are along ``dim``.
    Raises ``UnsupportedError`` where that is only known at run time, or differs between items.
    """
    lead = lead_axes(dims.axes[site.value], site.dim, site.tokens)
    labels = Labels(exported, dims, {site.value, *region.short}, site, lead)
    rows = labels.rows(target, labels.number(width), dim)
    count, units = labels.number(items), labels.units
    of_items = rows.reshape(count, -1)
    towers = prod(labels.number(axis.root.length) for axis in lead)
    if towers % count:
        raise UnsupportedError(
            f"{towers} tower items are merged into {count} sequences", where=describe(target)
        )
    step = towers // count * units
    first = of_items[0]
    for item, found in enumerate(of_items):
        if not torch.equal(torch.where(found < 0, found, found - item * step), first):
            raise UnsupportedError(
                "batch items get different rows of the vision tower", where=describe(target)
            )
    ours = first[first >= 0]
    counts = torch.bincount(ours, minlength=step)
    copies = sorted(set(counts[counts > 0].tolist()))
    if len(copies) != 1 or counts.numel() != step:
        raise UnsupportedError(
            "some rows of the vision tower are repeated and others are not",
            where=describe(target),
        )
    reach = (counts > 0).reshape(-1, units)
    return Arrival(reach, copies[0], int((first < 0).sum()), holes, first)
