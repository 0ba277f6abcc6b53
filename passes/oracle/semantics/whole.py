"""Operators that read a dim as a whole: norms with weights, scans, positions of entries.

Along that dim either nothing or everything may be dead (the features of a dropped row).  Anything
else reads rows by their position, which a shortened program would not reproduce: refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import bare, bury, dead_entries, either, filled
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.reduction import reduced_dims
from tokopt.passes.oracle.semantics.table import rule


def whole(call: Operation, dims: tuple[int, ...], operand: str | None = None) -> Any:
    """Run a call whose result is dead where its operand is dead along all of ``dims``."""
    name = operand or call.main
    value = call.get(name)
    dead = dead_entries(value)
    if dead is None:
        raise call.refuse("constants are computed from rows")
    gone = dead.all(dims, keepdim=True)
    if bool((dead.any(dims, keepdim=True) != gone).any()):
        raise call.refuse("some of the rows it reads by position were dropped, and others not")
    result = call.run({name: filled(value, 0)})
    parts = list(result) if isinstance(result, (list, tuple)) else [result]
    marked = [bury(p, gone if p.ndim == gone.ndim else gone.squeeze(dims)) for p in parts]
    return tuple(marked) if isinstance(result, (list, tuple)) else marked[0]


@rule("layer_norm", "native_layer_norm", "rms_norm", "_fused_rms_norm")
def layer_norm(call: Operation) -> Any:
    """Normalise over the last dims, with learned weights."""
    rank = bare(call.get(call.main)).ndim
    count = len(call.get("normalized_shape"))
    return whole(call, tuple(range(rank - count, rank)))


@rule("group_norm", "instance_norm")
def group_norm(call: Operation) -> Any:
    """Everything of a batch item is normalised together."""
    return whole(call, tuple(range(1, bare(call.get(call.main)).ndim)))


@rule("argmax", "argmin", "max", "min", "median", "cumsum", "cumprod", "cummax", "cummin")
@rule("logcumsumexp", "sort", "argsort", "topk", "msort", "kthvalue", "glu", "diff")
def along_dim(call: Operation) -> Any:
    """Scan, sort, halve or search one dim; ``max``/``min`` of two tensors are pointwise."""
    if call.tensor("other") is not None:
        return bury(call.run(), either(*(dead_entries(value) for value in call.given.values())))
    last = {"sort", "argsort", "topk", "kthvalue", "glu", "diff"}
    dim = call.get("dim", -1 if call.name in last else 0 if call.name == "msort" else None)
    return whole(call, reduced_dims(dim, bare(call.get(call.main)).ndim))


POOLS = """
avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d adaptive_avg_pool1d adaptive_avg_pool2d
_adaptive_avg_pool2d
"""


@rule(*POOLS.split())
def pool(call: Operation) -> Any:
    """Pool windows that were dropped whole, or not at all."""
    dead = call.dead(call.main)
    assert dead is not None, "a rule is called only where an operand has dead entries"
    if set(_ints(call.get("output_size"))) == {1}:  # one window: whatever is there
        value, dims = call.get(call.main), tuple(range(-int(call.name[-2]), 0))
        number = (~dead).sum(dims, keepdim=True)
        mean = filled(value, 0).sum(dims, keepdim=True) / number
        return bury(mean, dead.all(dims, keepdim=True))
    gone = _dead_windows(call, dead, lambda mask: call.run({call.main: mask}))
    return bury(call.run({call.main: filled(call.get(call.main), 0)}), gone)


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(call: Operation) -> Any:
    """Apply a kernel to neighbourhoods that were dropped whole, or not at all."""
    weight, dead = call.tensor("weight"), call.dead("input")
    if weight is None or dead is None or call.get("transposed"):
        raise call.refuse("a kernel is computed from rows, or is transposed")
    steps = {"stride": list(weight.shape[2:]), "padding": [0], "dilation": [1]}
    if any(set(_ints(call.get(name))) - set(fits) for name, fits in steps.items()):
        raise call.refuse("a convolution combines neighbouring rows")
    lines = dead.all(1, keepdim=True)
    if bool((dead.any(1, keepdim=True) != lines).any()):
        raise call.refuse("some channels of a row were dropped, and others not")
    ones = torch.ones_like(weight[:1, :1])

    def count(mask: Tensor) -> Tensor:
        result: Tensor = call.run({"input": mask, "weight": ones, "bias": None, "groups": 1})
        return result

    gone = _dead_windows(call, lines, count)
    return bury(call.run({"input": filled(call.get("input"), 0)}), gone)


def _dead_windows(call: Operation, dead: Tensor, count: Callable[[Tensor], Tensor]) -> Tensor:
    """Return which windows have no entry alive; ``count`` is more than 0 where a mask has one."""
    some, left = count(dead.float()) > 0, count((~dead).float()) > 0
    if bool((some & left).any()):
        raise call.refuse("neighbouring rows are combined of which some were dropped, others not")
    return some


def _ints(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value or [])
