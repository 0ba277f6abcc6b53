"""Sites: where a stack's token axis may be shortened, by single rows or whole groups, or why not.

Rows leave along some factors of the token axis, its *unit*; along the others they stay whole.  The
unit is found by refinement: all factors at first; a barrier names those it reads by position,
which are taken out, until no barrier is left, or no unit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch
from torch import Tensor, fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims
from tokopt.ir.holes import Barrier
from tokopt.ir.lengths import product
from tokopt.ir.region import Region, plan_region


@dataclass(frozen=True)
class Site:
    """A place where the token axis may be shortened: the value entering a layer, or the end.

    ``name`` is ``role:depth`` or ``role:end``.  ``unit`` are the factors along which rows leave,
    ``grid`` all factors of the stack's token axis.  ``tokens`` is the axis that is cut: the stack's
    own, or, where a group's rows are neighbours, the axis that counts groups.  ``barrier`` says why
    rows cannot leave, ``reason`` why only whole groups can.
    """

    name: str
    depth: int
    value: fx.Node
    dim: int
    tokens: Axis
    grid: tuple[Axis, ...]
    unit: tuple[Axis, ...]
    barrier: Barrier | None = None
    reason: Barrier | None = None

    @property
    def legal(self) -> bool:
        """Whether a stage may be placed here."""
        return self.barrier is None

    @property
    def whole(self) -> tuple[int, ...]:
        """Lengths of the factors that stay whole, outer first: 2x2 rows leave together.

        Factors side by side are one length (a window 4 wide), where they are not all there are.
        """
        runs = [
            [int(axis.length) for axis in run]
            for stays, run in groupby(self.grid, key=lambda axis: axis not in self.unit)
            if stays
        ]
        return tuple(runs[0]) if len(runs) == 1 else tuple(prod(run) for run in runs)

    @property
    def group(self) -> int:
        """How many rows of the stream leave together."""
        return prod(self.whole)

    @property
    def run(self) -> int:
        """How many rows of the stream one row of ``tokens`` stands for: the group, or 1."""
        return 1 if self.tokens.primes() == [*self.grid] else self.group

    @property
    def scattered(self) -> bool:
        """Whether the rows of a group are not neighbours: other groups' rows lie between them."""
        return self.group != self.run

    def groups(self, device: torch.device | None = None) -> Tensor:
        """Return the number of the group of every row of the token axis, int64 ``[N]``."""
        lengths = [int(axis.length) for axis in self.grid]
        every = zip(self.grid, lengths, strict=True)
        counted = [length if axis in self.unit else 1 for axis, length in every]
        numbers = torch.arange(prod(counted), device=device).reshape(counted)
        return numbers.expand(lengths).reshape(-1)


def judge_sites(
    role: str,
    places: list[tuple[str, int, fx.Node]],
    dim: int,
    tokens: Axis,
    graph: fx.Graph,
    dims: Dims,
    last_row_kept: bool,
) -> list[Site]:
    """Judge every place: single rows first, then groups, as small as the barriers let them be.

    What lies downstream of a place lies downstream of those before it: where one is legal, all
    later ones are.  Mostly the first is; else the first legal one is found by bisection.
    """

    def judge(value: fx.Node, axis: Axis, unit: tuple[Axis, ...]) -> Region | Barrier:
        return plan_region(graph, dims, value, axis, unit=unit, last_row_kept=last_row_kept)

    tokens = tokens.root
    grid = tuple(tokens.primes())
    found: dict[int, Site] = {}
    left = list(places)

    def settle(axis: Axis, unit: tuple[Axis, ...], reason: Barrier | None) -> None:
        at = _first_legal(left, lambda value: isinstance(judge(value, axis, unit), Region))
        groups = _counting(unit) if unit == grid[: len(unit)] and unit != grid else axis
        narrower = groups is not axis and at < len(left)
        if narrower and isinstance(judge(left[at][2], groups, unit), Region):
            axis = groups
        for label, depth, value in left[at:]:
            name = f"{role}:{label}"
            found[depth] = Site(name, depth, value, dim, axis, grid, unit, None, reason)
        del left[at:]

    unit, reason = grid, None
    while left and unit:
        settle(tokens, unit, reason)
        if left:
            barrier = judge(left[-1][2], tokens, unit)
            assert isinstance(barrier, Barrier)
            reason = reason or barrier
            unit = _without(grid, unit, barrier)
    for width in reversed(range(1, len(grid))):  # groups that pass where their rows do not
        if left and _are_counted(grid[width:]):
            settle(_counting(grid[:width]), grid[:width], reason)
    for label, depth, value in left:
        barrier = judge(value, tokens, grid)
        assert isinstance(barrier, Barrier)
        found[depth] = Site(f"{role}:{label}", depth, value, dim, tokens, grid, grid, barrier)
    return [found[depth] for _, depth, _ in places]


def _first_legal(places: list[tuple[str, int, fx.Node]], legal: Callable[[fx.Node], bool]) -> int:
    """Return the index of the first legal value; their number where none is."""
    if places and legal(places[0][2]):
        return 0
    low, high = min(1, len(places)), len(places)
    while low < high:
        middle = (low + high) // 2
        if legal(places[middle][2]):
            high = middle
        else:
            low = middle + 1
    return low


def _without(grid: tuple[Axis, ...], unit: tuple[Axis, ...], barrier: Barrier) -> tuple[Axis, ...]:
    """Return the factors that a barrier leaves; none where it does not say which it reads.

    None as well where a table of the groups' rows cannot be made: sizes in it are symbolic.
    """
    rest = tuple(axis for axis in unit if axis not in barrier.pieces)
    inside = grid if rest != grid[: len(rest)] else grid[len(rest) :]
    return rest if len(rest) < len(unit) and _are_counted(inside) else ()


def _are_counted(grid: tuple[Axis, ...]) -> bool:
    return all(isinstance(axis.length, int) for axis in grid)


def _counting(unit: tuple[Axis, ...]) -> Axis:
    """Return the axis that counts groups whose rows are neighbours."""
    if len(unit) == 1:
        return unit[0]
    return Axis(product([factor.length for factor in unit]), factors=[*unit])
