"""Reductions and normalisations over dims."""

from __future__ import annotations

from tokopt.ir.call import Call, dim_list
from tokopt.ir.rules import rule

SETWISE = """
mean sum amax amin any all var std norm linalg_vector_norm logsumexp max min prod var_mean
nansum nanmean median aminmax std_mean count_nonzero
"""


@rule(*SETWISE.split())
def setwise(call: Call) -> None:
    """Reduced dims are folded as sets; the others pass.  Positions, if returned, are relative."""
    operand = call.tensors()[0]
    if call.is_tensor(call.get("other")):  # maximum/minimum of two tensors, named max/min
        for other in call.tensors():
            call.broadcast(other, call.out)
        return
    rank = len(call.dims(operand))
    reduced = dim_list(call.get("dim"), rank)
    _reduce(call, reduced)
    for dim in reduced:
        if len(call.outs) > 1 and str(call.node.target).startswith(
            ("aten.max", "aten.min", "aten.median")
        ):
            call.mix(operand, dim, "returns positions of rows")
        else:
            call.fold(operand, dim)


@rule("argmax", "argmin")
def position(call: Call) -> None:
    """The position of a row is returned: it changes when rows go."""
    operand = call.tensors()[0]
    reduced = dim_list(call.get("dim"), len(call.dims(operand)))
    _reduce(call, reduced)
    for dim in reduced:
        call.mix(operand, dim, "returns the position of a row")


def _reduce(call: Call, reduced: list[int]) -> None:
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    for axes in call.outs:
        kept = len(axes) == rank
        out = 0
        for dim in range(rank):
            if dim not in reduced:
                if axes:
                    call.broadcast_one(operand, dim, axes[out])
                out += 1
            elif kept:
                out += 1


@rule("softmax", "log_softmax", "_softmax", "_log_softmax", "_safe_softmax")
def softmax(call: Call) -> None:
    """Every dim passes; the normalised one is also folded."""
    operand = call.tensors()[0]
    call.broadcast(operand, call.out)
    call.fold(operand, call.get("dim"))


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Call) -> None:
    """The last dims are normalised with learned weights; the others pass."""
    operand = call.tensors()[0]
    for axes in call.outs:  # statistics, where returned, keep the normalised dims at size 1
        call.broadcast(operand, axes)
    for parameter in call.tensors()[1:]:
        call.broadcast(parameter, call.out)
    count = len(call.get("normalized_shape"))
    for dim in range(len(call.dims(operand)) - count, len(call.dims(operand))):
        call.mix(operand, dim, "normalises over the dim with learned weights")


@rule("group_norm", "native_group_norm", "instance_norm")
def group_norm(call: Call) -> None:
    """Dims after the batch are normalised together; weights go by channel (dim 1)."""
    operand, *parameters = call.tensors()
    call.broadcast(operand, call.out)
    for parameter in parameters:
        call.broadcast_one(parameter, 0, call.out[1])
    for statistic in call.outs[1:]:
        call.broadcast_one(operand, 0, statistic[0])
    for dim in range(1, len(call.dims(operand))):
        call.mix(operand, dim, "normalises over groups of the dim")


@rule("batch_norm", "_native_batch_norm_legit_no_training", "native_batch_norm")
def batch_norm(call: Call) -> None:
    """Per-channel statistics are constants at inference: every row passes.

    In training they are means over all other dims, which are then folded.
    """
    operand, *parameters = call.tensors()
    call.broadcast(operand, call.out)
    for parameter in parameters:
        call.broadcast_one(parameter, 0, call.out[1])
    for statistic in call.outs[1:]:
        call.broadcast_one(operand, 1, statistic[0])
    if call.get("training"):
        for dim in range(len(call.dims(operand))):
            if dim != 1:
                call.fold(operand, dim)


@rule("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
def scan(call: Call) -> None:
    """A scan reads the order of its dim."""
    operand = call.tensors()[0]
    for axes in call.outs:
        call.broadcast(operand, axes)
    call.mix(operand, call.wrap(operand, call.get("dim")), "scans the rows in order")


@rule("tril", "triu")
def triangle(call: Call) -> None:
    """Entries are masked by comparing the two positions."""
    operand = call.tensors()[0]
    call.broadcast(operand, call.out)
    for dim in (-2, -1):
        call.mix(operand, call.wrap(operand, dim), "masks entries by their position")


@rule("glu")
def glu(call: Call) -> None:
    """Two halves of a dim meet."""
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    split = call.get("dim", -1) % rank
    for dim in range(rank):
        if dim == split:
            call.mix(operand, dim, "combines the two halves of the dim")
        else:
            call.link(operand, dim, dim)
