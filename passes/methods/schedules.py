"""Schedules: placements that several methods share, scaled to the depth of a model.

A published layer k of L becomes ``round(k · n / L)`` in a stack of n layers; a stage that reads
attention needs a layer before it and enters layer 1 at the earliest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from tokopt.passes.methods.method import Placement, Setting


def tower_end(setting: Setting) -> tuple[Placement, ...]:
    """One stage, after the tower's last layer."""
    return (Placement(setting.layers, setting.keep),)


def before_decoder(setting: Setting) -> tuple[Placement, ...]:
    """One stage: at the end of a tower that feeds a decoder, else before the first layer."""
    return (Placement(0 if setting.consumer else setting.layers, setting.keep),)


def scaled(setting: Setting, layer: int, of: int) -> int:
    """Return where published layer ``layer`` of ``of`` is in a stack, behind one layer at least."""
    return max(1, round(layer * setting.layers / of))


def entering(layer: int, of: int) -> Callable[[Setting], tuple[Placement, ...]]:
    """One stage entering layer ``layer`` of ``of``."""

    def schedule(setting: Setting) -> tuple[Placement, ...]:
        return (Placement(scaled(setting, layer, of), setting.keep),)

    return schedule


def staged(setting: Setting, depths: Iterable[int], rows: Iterable[int]) -> tuple[Placement, ...]:
    """Several stages, ascending, and the rows behind each; the last leaves ``setting.keep``.

    No stage leaves fewer rows than the last, or more than there are.  Of two that enter one layer
    the later holds.
    """
    counts = {
        depth: min(setting.count, max(setting.keep, left))
        for depth, left in zip(depths, rows, strict=True)
    }
    counts[max(counts)] = setting.keep
    return tuple(Placement(depth, keep) for depth, keep in counts.items())


def between(table: Sequence[Sequence[float]], column: int, wanted: float) -> list[float]:
    """Return the line of a published table where ``column`` is ``wanted``, on lines between rows.

    The column ascends from row to row; beyond its ends the first or last row holds.
    """
    low, high = next((a, b) for a, b in pairwise(table) if wanted <= b[column] or b is table[-1])
    part = min(max((wanted - low[column]) / (high[column] - low[column]), 0.0), 1.0)
    return [x + part * (y - x) for x, y in zip(low, high, strict=True)]
