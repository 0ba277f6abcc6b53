"""Planes: patches as columns and back, pixel shuffles; the same rows, regrouped."""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from tokopt.ir.axis import Axis, align_factors
from tokopt.ir.call import Call
from tokopt.ir.lengths import quotient
from tokopt.ir.rules import rule
from tokopt.ir.rules.pool import NEIGHBOURS
from tokopt.ir.rules.windows import side_by_side, spatial

Equal = Sequence[tuple[list[Axis], list[Axis]]]


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(call: Call) -> None:
    """``[C r r, H, W]`` and ``[C, H r, W r]``; what is in front passes."""
    operand = call.tensors()[0]
    small, large = call.dims(operand), call.out
    width = call.get("upscale_factor")
    if width is None:
        small, large, width = large, small, call.get("downscale_factor")
    high, wide = Axis(width), Axis(width)
    _regroup(call, operand, 3, [
        ([large[-3], high, wide], [small[-3]]),
        ([small[-2], high], [large[-2]]),
        ([small[-1], wide], [large[-1]]),
    ])  # fmt: skip


@rule("im2col", "col2im")
def columns(call: Call) -> None:
    """``[C, H, W]`` and ``[C kh kw, rows columns]``; a batch passes.

    Patches that overlap, or leave rows out, combine neighbours.
    """
    operand = call.tensors()[0]
    back = "col2im" in str(call.node.target)
    plane, flat = (call.out, call.dims(operand)) if back else (call.dims(operand), call.out)
    taken = 2 if back else 3
    high, wide = side_by_side(call, spatial(call.get("kernel_size"), 2), call.get("stride"))
    down = None if high is None else quotient(plane[-2].length, high)
    across = None if wide is None else quotient(plane[-1].length, wide)
    if high is None or wide is None or down is None or across is None:
        for dim in range(len(call.dims(operand))):
            if dim < len(call.dims(operand)) - taken:
                call.link(operand, dim, dim)
            else:
                call.mix(operand, dim, NEIGHBOURS)
        return
    rows, columns, top, left = Axis(down), Axis(across), Axis(high), Axis(wide)
    _regroup(call, operand, taken, [
        ([rows, top], [plane[-2]]),
        ([columns, left], [plane[-1]]),
        ([plane[-3], top, left], [flat[-2]]),
        ([rows, columns], [flat[-1]]),
    ])  # fmt: skip


def _regroup(call: Call, operand: fx.Node, taken: int, equal: Equal) -> None:
    """Say that products of axes are the same; where they do not nest, rows are moved."""
    rank = len(call.dims(operand))
    for dim in range(rank - taken):
        call.link(operand, dim, dim)
    if not all([align_factors(a, b) for a, b in equal]):
        for dim in range(rank - taken, rank):
            call.move(operand, dim, None, "regroups rows across dims")
