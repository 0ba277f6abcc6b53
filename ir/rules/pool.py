"""Neighbourhoods: pooling, resampling, windows of one dim."""

from __future__ import annotations

from tokopt.ir.axis import align_factors
from tokopt.ir.call import Call
from tokopt.ir.lengths import Length, is_one, quotient
from tokopt.ir.rules import rule
from tokopt.ir.rules.windows import side_by_side, spatial, window_factor

NEIGHBOURS = "combines neighbouring rows"

POOLS = """
avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices adaptive_avg_pool1d
adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d
upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_nearest1d
upsample_linear1d
"""


@rule(*POOLS.split())
def pool(call: Call) -> None:
    """The last dims (as many as the name says) are combined; batch and channels pass.

    Windows that lie side by side are a factor of the dim: only along that are rows combined.
    """
    name = call.node.target._schema.name  # type: ignore[union-attr]
    count = next(int(c) for c in name if c in "123")
    operand = call.tensors()[0]
    first = len(call.dims(operand)) - count
    for dim in range(first):
        for which in range(len(call.outs)):
            call.link(operand, dim, dim, which)
    positions = len(call.outs) > 1  # of the largest entries, counted over the whole plane
    widths = [None] * count if positions else _widths(call, name, count)
    for dim, width in enumerate(widths, first):
        if "adaptive" in name and is_one(call.out[dim].length) and not positions:
            call.fold(operand, dim)  # all rows, as many as there are
            continue
        window = window_factor(call, operand, dim, call.out[dim], width)
        call.mix(operand, dim, NEIGHBOURS, window)


def _widths(call: Call, name: str, count: int) -> list[Length | None]:
    """Return the width of the windows on each dim, None where they are not side by side."""
    if "upsample" in name:
        return [None] * count
    if "adaptive" in name:  # windows are equal where the output divides the dim
        dims, out = call.dims(call.tensors()[0])[-count:], call.out[-count:]
        return [quotient(a.length, b.length) for a, b in zip(dims, out, strict=True)]
    width = spatial(call.get("kernel_size"), count)
    return [*side_by_side(call, width, call.get("stride") or width)]


@rule("unfold")
def unfold(call: Call) -> None:
    """Windows of one dim: a dim counts them, a new last dim runs inside."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dimension"))
    call.link_others(operand, dim)
    if call.get("size") != call.get("step") or not align_factors(
        [call.out[dim], call.out[-1]], [call.dims(operand)[dim]]
    ):
        call.mix(operand, dim, NEIGHBOURS)


@rule("grid_sampler", "grid_sampler_2d")
def grid_sampler(call: Call) -> None:
    """``x [B, C, …]`` is read at points ``grid [B, …, n]``: one output row per point."""
    x, grid = call.get("input"), call.get("grid")
    for operand in (x, grid):
        call.link(operand, 0, 0)
    call.link(x, 1, 1)
    for dim in range(2, len(call.dims(x))):
        call.mix(x, dim, "is read at run-time points")
    for dim in range(1, len(call.dims(grid)) - 1):
        call.link(grid, dim, dim + 1)
    call.mix(grid, len(call.dims(grid)) - 1, "holds the coordinates of a point")
