"""Neighbourhoods: pooling, resampling, windows, pixel shuffles."""

from __future__ import annotations

from tokopt.ir.call import Call
from tokopt.ir.rules import rule

NEIGHBOURS = "combines neighbouring rows"

POOLS = """
avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices adaptive_avg_pool1d
adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d upsample_bilinear2d
upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa upsample_nearest1d
upsample_linear1d
"""


@rule(*POOLS.split())
def pool(call: Call) -> None:
    """The last dims (as many as the name says) are combined; batch and channels pass."""
    name = call.node.target._schema.name  # type: ignore[union-attr]
    _last_dims(call, next(int(c) for c in name if c in "123"))


@rule("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(call: Call) -> None:
    """Channels and the two dims of the plane are regrouped; what is in front passes."""
    _last_dims(call, 3)


@rule("im2col", "col2im")
def columns(call: Call) -> None:
    """Patches become columns and back; a batch dim in front passes."""
    columns_rank = 4 if "im2col" in str(call.node.target) else 3
    operand = call.tensors()[0]
    batched = len(call.dims(operand)) == columns_rank
    _last_dims(call, len(call.dims(operand)) - batched)


def _last_dims(call: Call, count: int) -> None:
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    for dim in range(rank):
        if dim >= rank - count:
            call.mix(operand, dim, NEIGHBOURS)
            continue
        for which in range(len(call.outs)):
            call.link(operand, dim, dim, which)


@rule("unfold")
def unfold(call: Call) -> None:
    """Windows of one dim: a dim counts them, a new last dim runs inside."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dimension"))
    call.link_others(operand, dim)
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
