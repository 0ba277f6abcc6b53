"""Sites: where a stack's token axis may be shortened, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.dims import Dims
from tokopt.ir.lengths import is_one, product
from tokopt.ir.region import Barrier, Region, plan_region


@dataclass(frozen=True)
class Site:
    """A place where the token axis may be shortened: the value entering a layer, or the end.

    ``name`` is ``role:depth`` or ``role:end``.  ``tokens`` is the axis rows leave from, in units
    of ``group`` stream rows.  ``barrier`` says why not, where it is not legal.
    """

    name: str
    depth: int
    value: fx.Node
    dim: int
    tokens: Axis
    group: int
    barrier: Barrier | None

    @property
    def legal(self) -> bool:
        """Whether a stage may be placed here."""
        return self.barrier is None


def judge_sites(
    role: str,
    places: list[tuple[str, int, fx.Node]],
    dim: int,
    tokens: Axis,
    graph: fx.Graph,
    dims: Dims,
    last_row_kept: bool,
) -> list[Site]:
    """Judge every place: single rows first, then whole groups where a later view needs them.

    What lies downstream of a place lies downstream of those before it: where one is legal, all
    later ones are, so the first legal one is found by bisection.
    """

    def judge(value: fx.Node, axis: Axis) -> Region | Barrier | None:
        if locate(dims.axis(value, dim), axis) is None:
            return None
        return plan_region(graph, dims, value, axis, last_row_kept=last_row_kept)

    found: dict[int, Site] = {}
    for axis, group in _units(tokens):
        first = _first_legal([value for _, _, value in places], axis, judge)
        for at, (label, depth, value) in enumerate(places):
            if at >= first and at not in found:
                found[at] = Site(f"{role}:{label}", depth, value, dim, axis, group, None)
    for at, (label, depth, value) in enumerate(places):
        if at not in found:
            barrier = judge(value, tokens.root)
            assert isinstance(barrier, Barrier)
            found[at] = Site(f"{role}:{label}", depth, value, dim, tokens, 1, barrier)
    return [found[at] for at in range(len(places))]


def _first_legal(
    values: list[fx.Node],
    axis: Axis,
    judge: Callable[[fx.Node, Axis], Region | Barrier | None],
) -> int:
    """Return the index of the first legal value; their number where none is."""
    low, high = 0, len(values)
    while low < high:
        middle = (low + high) // 2
        if isinstance(judge(values[middle], axis), Region):
            high = middle
        else:
            low = middle + 1
    return low


def _units(tokens: Axis) -> list[tuple[Axis, int]]:
    """Return the axes rows may leave from: single tokens, then outer factors (whole groups)."""
    units = [(tokens.root, 1)]
    factors = [f.root for f in tokens.root.factors]
    if factors and not is_one(factors[0].length):
        group = product([f.length for f in factors[1:]])
        if isinstance(group, int) and group > 1:
            units.append((factors[0], group))
    return units
