"""Series: the cuts of one stack, one after the other, over regions planned beforehand.

Regions are planned on the graph as it was: each later one lies inside the one before.  An edge
where rows must be restored belongs to the last cut whose region has it, and is restored from that
cut's rows to the original length, through the composed index.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from torch import fx

from tokopt.ir.axis import locate
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.holes import Barrier
from tokopt.ir.join import HANDED
from tokopt.ir.region import Region, plan_region
from tokopt.ir.sites import Site
from tokopt.passes.cut import Cut
from tokopt.passes.workspace import Workspace, aten


class Series:
    """Plan all regions of a stack, then make its cuts in order."""

    def __init__(self, work: Workspace, outputs: str) -> None:
        self.work, self.outputs = work, outputs
        self.regions: list[Region] = []
        self.whole: Cut | None = None
        self.made: list[Cut] = []

    def behind(self, site: Site) -> Site:
        """Return a site as it is behind all cuts made so far."""
        for cut in self.made:
            site = cut.after(site)
        return site

    def plan(self, values: list[fx.Node], stack: TokenStack, sites: list[Site]) -> None:
        """Plan the region downstream of each cut value.  Raises where one is not legal."""
        tokens = sites[0].tokens if sites else stack.stack.stream.root
        unit = sites[0].unit if sites else ()
        for value in values:
            region = plan_region(
                self.work.graph,
                self.work.facts.dims,
                value,
                tokens,
                unit=unit,
                last_row_kept=stack.merge is not None,
            )
            if isinstance(region, Barrier):
                raise UnsupportedError(f"rows cannot be dropped here: {region}")
            self.regions.append(region)

    def make(self, cut: Cut) -> None:
        """Make the next cut: shorten its region, restore the edges no later cut will restore."""
        region, *later = self.regions
        self.regions = later
        self.made.append(cut)
        cut.shorten(region)
        self.whole = self._composed(cut)
        after = later[0] if later else Region()
        for user, operand in region.restores:
            if (user, operand) not in after.restores:
                short = cut.short(operand, user)
                user.replace_input_with(operand, self.whole.restored(short, user))
        waiting = {user for user, _ in after.restores}  # short until a later cut
        self.work.propagate(region.short, waiting)
        (output,) = self.work.graph.find_nodes(op="output")
        for operand in region.outputs:
            if operand not in after.outputs:
                short = cut.short(operand, output)
                if HANDED in operand.meta:
                    pass  # what another program takes: there, shorter is the point
                elif self.outputs == "full":
                    short = self.whole.restored(short, output)
                elif self.outputs == "last":
                    short = self._last_row(short, output, cut)
                output.replace_input_with(operand, short)

    def _last_row(self, short: fx.Node, output: fx.Node, cut: Cut) -> fx.Node:
        """Return the last row of an output that carries the axis as it is, its dim kept."""
        for dim, axis in enumerate(self.work.axes[short]):
            place = locate(axis, cut.tokens)
            if place is not None and place.whole:
                with self.work.graph.inserting_before(output):
                    return self.work.call(aten.slice.Tensor, short, dim, -1, sys.maxsize)
        return short

    def _composed(self, cut: Cut) -> Cut:
        """Return the cut from the original rows to the rows that are left now."""
        if self.whole is None:
            return replace(cut, lifts={}, gathered={})
        before = self.whole
        with self.work.graph.inserting_before(cut.index.next):
            dim = len(cut.lead)
            index = self.work.call(aten.gather.default, before.index, dim, cut.index)
        return replace(cut, index=index, rows=before.rows, lifts={}, gathered={})
