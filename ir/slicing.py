"""Slicing: the axis of a range of rows of another."""

from __future__ import annotations

from tokopt.ir.axis import Axis, split
from tokopt.ir.lengths import Length, is_longer, minus, same_length


def sliced(axis: Axis, start: Length, length: Length) -> Axis | None:
    """Return the axis of rows ``start .. start + length``, or None where that is undecidable."""
    axis = axis.root
    if same_length(axis.length, length):
        return axis
    end_left = minus(minus(axis.length, start), length)
    if is_longer(start, 0):
        if is_longer(axis.length, start) is not True or (pieces := split(axis, start)) is None:
            return None
        axis = pieces[1].root
    if is_longer(end_left, 0):
        if is_longer(axis.length, length) is not True or (pieces := split(axis, length)) is None:
            return None
        axis = pieces[0].root
    return axis if same_length(axis.length, length) else None
