"""Windows that lie side by side: a dim is a product, how many there are times how wide they are.

Where kernel and stride are equal, with no padding and no gaps, every row is in exactly one window.
What combines the rows of a window leaves the factor that counts windows alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from tokopt.ir.axis import Axis, align_factors
from tokopt.ir.call import Call
from tokopt.ir.lengths import Length, product, same_length


def window_factor(
    call: Call, operand: fx.Node, dim: int, out: Axis, width: Length | None
) -> Axis | None:
    """Say that a dim is windows counted by ``out``; return the axis inside a window.

    None (nothing is said) where ``width`` is None or windows do not fill the dim.
    """
    axis = call.dims(operand)[dim]
    if width is None or not same_length(axis.length, product([out.length, width])):
        return None
    inner = Axis(width)
    return inner if align_factors([out, inner], [axis]) else None


def side_by_side(call: Call, width: Sequence[int], stride: Any) -> list[int | None]:
    """Return each dim's window width, None where windows overlap, or leave rows out."""
    count = len(width)
    steps = spatial(stride, count)
    around, apart = (spatial(call.get(n, d), count) for n, d in (("padding", 0), ("dilation", 1)))
    every = zip(width, steps, around, apart, strict=True)
    return [w if w == s and p == 0 and (d == 1 or w == 1) else None for w, s, p, d in every]


def spatial(value: Any, count: int) -> list[Any]:
    """Return an argument that is given once, or once per dim, as one entry per dim."""
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * count if len(values) == 1 else values
