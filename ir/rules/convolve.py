"""Convolutions."""

from __future__ import annotations

from torch import fx

from tokopt.ir.call import Call
from tokopt.ir.lengths import is_one, same_length
from tokopt.ir.rules import rule
from tokopt.ir.rules.contract import FEATURES
from tokopt.ir.rules.windows import side_by_side, window_factor

GROUPS = "channels are in groups"
NEIGHBOURS = "a convolution combines neighbouring rows"


@rule("conv1d", "conv2d", "conv3d", "convolution", "conv_transpose1d", "conv_transpose2d")
def convolution(call: Call) -> None:
    """A 1-wide kernel is a linear layer per position; any other mixes neighbours.

    Kernels that lie side by side mix along a factor of the dim alone (``windows.py``).

    ``weight`` is ``[out, in / groups, …]``, or ``[in, out / groups, …]`` where transposed.
    """
    x, weight = call.get("input"), call.get("weight")
    bias = call.get("bias")
    rank = len(call.dims(weight))
    channels = len(call.dims(x)) - rank + 1  # 0 where there is no batch dim
    if channels:
        call.link(x, 0, 0)
    call.mix(x, channels, FEATURES)
    transposed = "transpose" in str(call.node.target) or bool(call.get("transposed"))
    if call.get("groups", 1) == 1:
        call.link(weight, 1 if transposed else 0, channels)
        call.mix(weight, 0 if transposed else 1, FEATURES)
    else:
        for dim in (0, 1):
            call.mix(weight, dim, GROUPS)
    if call.is_tensor(bias):  # in groups, channels have other inputs: a bias stays with its own
        call.broadcast_one(bias, 0, call.out[channels])
        if call.get("groups", 1) != 1:
            call.mix(bias, 0, GROUPS)
    widths = side_by_side(
        call, [int(a.length) for a in call.dims(weight)[2:]], call.get("stride", 1)
    )
    for dim in range(2, rank):
        own = channels + dim - 1
        call.mix(weight, dim, NEIGHBOURS)
        if is_one(call.dims(weight)[dim].length) and _row_by_row(call, x, own):
            call.link(x, own, own)
        else:
            width = None if transposed else widths[dim - 2]
            window = window_factor(call, x, own, call.out[own], width)
            call.mix(x, own, NEIGHBOURS, window)


def _row_by_row(call: Call, x: fx.Node, dim: int) -> bool:
    """Return whether a 1-wide kernel meets every row once, in place."""
    stride, padding = call.get("stride", 1), call.get("padding", 0)
    steps = stride if isinstance(stride, (list, tuple)) else [stride]
    around = padding if isinstance(padding, (list, tuple)) else [padding]
    plain = all(s == 1 for s in steps) and all(p == 0 or isinstance(p, str) for p in around)
    return plain and same_length(call.dims(x)[dim].length, call.out[dim].length)
