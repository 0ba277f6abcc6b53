"""Operators that read a dim as a whole: norms with weights, scans, positions of entries.

Along that dim either nothing or everything may be dead (the features of a dropped row).  Anything
else reads rows by their position, which a shortened program would not reproduce: refused.
"""

from __future__ import annotations

from typing import Any

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


@rule("conv1d", "conv2d", "conv3d", "convolution")
def convolution(call: Operation) -> Any:
    """Apply a kernel that is 1 wide as a linear layer; a wider one mixes neighbours."""
    weight = call.tensor("weight")
    narrow = weight is not None and all(size == 1 for size in weight.shape[2:])
    still = all(s == 1 for s in _ints(call.get("stride"))) and not any(_ints(call.get("padding")))
    if not narrow or not still or call.get("transposed"):
        raise call.refuse("a convolution combines neighbouring rows")
    return whole(call, (1,))


def _ints(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value or [])
