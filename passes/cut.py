"""Cut: shorten a token axis at a value and everything downstream of it.

Before: ``v`` and its region run on all N rows.  After: ``v`` is gathered once; every value that
enters the region from outside and carries the axis (rotary tables, masks on both dims, position
ids, index tables) is gathered on each dim that has it; size literals follow; where rows are moved
by position, and at outputs that promise full length, the rows are restored first.  Sound because
every operator of the region treats the axis's rows one by one or as a set (ir/region.py judged
each), so absent rows are as good as masked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.dialect import OPS
from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layout import unfolded
from tokopt.ir.region import Region
from tokopt.ir.sites import Site
from tokopt.passes.literals import patch_literals
from tokopt.passes.workspace import Count, Workspace, aten

Path = tuple[tuple[str, tuple[Axis, ...], int], ...]


@dataclass
class Cut:
    """One cut: ``index`` is int64 ``[*lead, K]`` over the ``rows`` that ``tokens`` had before."""

    work: Workspace
    value: fx.Node
    tokens: Axis
    lead: tuple[Axis, ...]
    index: fx.Node
    kept: Count
    rows: Count
    lifts: dict[object, fx.Node] = field(default_factory=dict)
    gathered: dict[object, fx.Node] = field(default_factory=dict)

    def shorten(self, region: Region) -> None:
        """Gather what enters the region, patch its sizes, and recompute its recorded values."""
        work, inside = self.work, {self.value, *region.short}
        for node in region.short:
            for operand in list(node.all_input_nodes):
                if operand is self.value or (operand not in inside and self._carries(operand)):
                    node.replace_input_with(operand, self._gather(operand, node))
            with work.graph.inserting_before(node):
                patch_literals(node, work, self.tokens, self.rows, self.kept)
        work.recompute(region.short)

    def replace_value(self, short: fx.Node) -> None:
        """Let the region read ``short`` for the cut value's rows that stay.

        It is laid out like the value; rows were folded into others in it.
        """
        self.gathered[(self.value, None)] = short
        self.work.axes[short] = list(self.work.axes[self.value])

    def short(self, operand: fx.Node, user: fx.Node) -> fx.Node:
        """Return a value of the region as it is now: the cut value itself is gathered."""
        return self._gather(operand, user) if operand is self.value else operand

    def after(self, site: Site) -> Site:
        """Return a site as it is behind the cut: at the rows that its users read now.

        That is another value where the site's own has all rows: the cut value itself, and one
        whose dropped rows are holes.
        """
        now = self.gathered.get((site.value, None))
        return site if now is None else replace(site, value=now)

    def restored(self, operand: fx.Node, user: fx.Node) -> fx.Node:
        """Insert, before its user, a short value with its dropped rows back as holes (zeros)."""
        with self.work.graph.inserting_before(user):
            return self._restored(operand)

    def _carries(self, node: fx.Node) -> bool:
        axes = self.work.axes.get(node, [])
        return any(locate(axis, self.tokens) is not None for axis in axes)

    def _gather(self, operand: fx.Node, user: fx.Node) -> fx.Node:
        """Return the operand's rows at the index, on every dim that carries the axis."""
        rank = len(self.work.axes[operand])
        pads = self._alignment(operand, user, rank)
        key = (operand, pads)
        if key not in self.gathered:
            with self.work.graph.inserting_before(user):
                self.gathered[key] = self._gather_at(operand, pads)
        return self.gathered[key]

    def _alignment(self, operand: fx.Node, user: fx.Node, rank: int) -> tuple[int, ...] | None:
        """Return where batch dims go in an operand that has none: ``(rank, dim of each lead)``.

        An operand shared by all items (a mask ``[1, 1, S, S]``, a table ``[S, d]``) becomes one per
        item; its batch dim lies where the user's result has it, counted from the right.
        """
        axes = self.work.axes[operand]
        if all(any(locate(a, lead) is not None for a in axes) for lead in self.lead):
            return None
        out = self.work.axes.get(user, [])
        dims = []
        for lead in self.lead:
            at = next((d for d, a in enumerate(out) if locate(a, lead) is not None), None)
            if at is None or out[at].root is not lead.root:
                raise UnsupportedError(
                    "a value shared by all batch items must become one per item, and its user has "
                    "no batch dim of its own",
                    where=describe(user),
                    hint="export with batch size 1, or place the stage elsewhere",
                )
            dims.append(at)
        return (max(rank, len(out)), *dims)

    def _gather_at(self, operand: fx.Node, pads: tuple[int, ...] | None) -> fx.Node:
        work = self.work
        axes = list(work.axes[operand])
        node = operand
        if pads is not None:
            while len(axes) < pads[0]:
                node, axes = work.call(aten.unsqueeze.default, node, 0), [Axis(1), *axes]
        node, parts, folded = self._unfold(node, axes)
        lead = [self._lead_dim(parts, i, pads) for i in range(len(self.lead))]
        for dim, (_, path) in enumerate(parts):
            if path is not None:
                index = self._lift(path)
                node = work.call(OPS["gather"].overload, node, index, dim, lead)
        if folded is not None:
            node = work.call(aten.reshape.default, node, self._refold(node, axes))
        for i, lead_axis in enumerate(self.lead):
            if pads is not None:
                axes[pads[1 + i]] = lead_axis
        work.axes[node] = axes
        return node

    def _lead_dim(
        self, parts: list[tuple[Axis, Path | None]], which: int, pads: tuple[int, ...] | None
    ) -> int:
        for dim, (axis, _) in enumerate(parts):
            if axis.root is self.lead[which].root:
                return dim
        assert pads is not None
        return pads[1 + which]

    def _unfold(
        self, node: fx.Node, axes: list[Axis]
    ) -> tuple[fx.Node, list[tuple[Axis, Path | None]], list[Axis] | None]:
        """Split dims that flatten batch items together with rows or heads."""
        wanted = [lead.root for lead in self.lead]
        parts: list[tuple[Axis, Path | None]] = []
        sizes: list[Count] = []
        split = False
        for dim, axis in enumerate(axes):
            place = locate(axis, self.tokens)
            inside = unfolded(axis, wanted, self.tokens)
            if len(inside) == 1:
                parts.append((axis.root, None if place is None else place.path))
                sizes.append(self.work.size(node, dim))
                continue
            split = True
            for factor in inside:
                within = locate(factor, self.tokens)
                parts.append((factor, None if within is None else within.path))
                sizes.append(factor.length if isinstance(factor.length, int) else -1)
            if place is not None:  # the token factor's current size is not its original one
                at = next(i for i in range(len(parts)) if parts[i][1] is not None)
                sizes[at] = self._current(parts[at][1] or ())
        if not split:
            return node, parts, None
        return self.work.call(aten.reshape.default, node, sizes), parts, axes

    def _current(self, path: Path) -> Count:
        """Return the current size of a dim from its path to the token axis."""
        count: Count = self.rows
        for kind, children, index in reversed(path):
            others = [c for i, c in enumerate(children) if i != index]
            for other in (self.work.length(child) for child in others):
                count = (
                    self.work.plus(count, other) if kind == "+" else self.work.times(count, other)
                )
        return count

    def _refold(self, node: fx.Node, axes: list[Axis]) -> list[Count]:
        """Return sizes that flatten unfolded dims again."""
        sizes: list[Count] = []
        at = 0
        wanted = [lead.root for lead in self.lead]
        for axis in axes:
            width = len(unfolded(axis, wanted, self.tokens))
            if width == 1:
                sizes.append(self.work.size(node, at))
            else:
                total: Count = 1
                for dim in range(at, at + width):
                    total = self.work.times(self.work.size(node, dim), total)
                sizes.append(total)
            at += width
        return sizes

    def _lift(self, path: Path) -> fx.Node:
        """Return the index over a dim that holds the token axis among other rows."""
        key = tuple((k, tuple(id(c) for c in cs), i) for k, cs, i in path)
        if not path:
            return self.index
        if key not in self.lifts:
            with self.work.graph.inserting_before(self.index.next):
                self.lifts[key] = self._lifted(path)
        return self.lifts[key]

    def _lifted(self, path: Path) -> fx.Node:
        steps: list[tuple[str, int, int]] = []
        beside: list[Count] = []
        for kind, children, position in path:
            beside += [self.work.length(c) for i, c in enumerate(children) if i != position]
            steps.append((kind, position, len(children) - position - 1))

        def lift(index: torch.Tensor, rows: int, *counts: int) -> torch.Tensor:
            given = list(counts)
            for kind, ahead, behind in reversed(steps):
                after = [given.pop() for _ in range(behind)]
                before = [given.pop() for _ in range(ahead)]
                if kind == "*":
                    inner = 1
                    for size in after:
                        inner *= size
                    index = index.unsqueeze(-1) * inner + torch.arange(inner, device=index.device)
                    index = index.flatten(-2)
                    rows = rows * inner
                    continue
                front, back = sum(before), sum(after)
                pieces = [index + front]
                shape = [*index.shape[:-1], -1]
                if before:
                    pieces.insert(0, torch.arange(front, device=index.device).expand(shape))
                if after:
                    tail = torch.arange(back, device=index.device) + rows + front
                    pieces.append(tail.expand(shape))
                index = torch.cat(pieces, dim=-1)
                rows = rows + front + back
            return index

        return self.work.splice(lift, [self.index, self.rows, *beside])

    def _restored(self, operand: fx.Node) -> fx.Node:
        """Return an operand with its dropped rows back as holes (zeros)."""
        work = self.work
        axes = list(work.axes[operand])
        node, parts, folded = self._unfold_short(operand, axes)
        lead = [self._lead_dim(parts, i, None) for i in range(len(self.lead))]
        for dim, (_, path) in enumerate(parts):
            if path is not None:
                index, length = self._lift(path), self._current(path)
                node = work.call(OPS["restore"].overload, node, index, length, dim, lead)
        if folded is not None:
            node = work.call(aten.reshape.default, node, self._refold(node, axes))
        work.axes[node] = axes
        return node

    def _unfold_short(
        self, node: fx.Node, axes: list[Axis]
    ) -> tuple[fx.Node, list[tuple[Axis, Path | None]], list[Axis] | None]:
        rows, self.rows = self.rows, self.kept
        try:
            return self._unfold(node, axes)
        finally:
            self.rows = rows
