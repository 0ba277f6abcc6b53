"""Operators that torch's exporter translates wrongly, slowly or not at all, done right.

Each function takes what the aten operator takes and returns traced ONNX values; ``TABLE`` is
what ``torch.onnx.export`` reads.  Every entry says why it is needed (torch 2.13).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir
import torch
from onnxscript.function_libs.torch_lib.ops.core import aten_arange_start_step

from tokopt.targets.onnx.attention import scaled_dot_product_attention
from tokopt.targets.onnx.operators import Value, ints, number, op
from tokopt.targets.onnx.rows import gather, scatter, scatter_add

aten = torch.ops.aten


def sort(self: Value, dim: int = -1, descending: bool = False) -> Any:
    """``TopK`` with k = size: among equals it puts the lower index first, a stable sort."""
    axis = dim % len(self.shape)
    size = op.Shape(self, start=axis, end=axis + 1)
    return op.TopK(self, size, axis=axis, largest=int(descending), sorted=1)


def sort_stable(
    self: Value, *, stable: bool | None = None, dim: int = -1, descending: bool = False
) -> Any:
    """Take ``stable``, which the exporter's own translation does not."""
    return sort(self, dim, descending)


def rsub_scalar(self: Value, other: float, alpha: float = 1) -> Value:
    """Keep ``1 - x`` one step: the exporter makes it a ``sub`` that no overload takes.

    ``1.0 - n`` of whole numbers is a fraction in torch.
    """
    fraction = isinstance(other, float) or isinstance(alpha, float)
    if fraction and not self.dtype.is_floating_point():
        whole = op.Cast(self, to=onnx_ir.DataType.FLOAT.value)
        one = onnx_ir.tensor(np.array(other, np.float32))
        factor = onnx_ir.tensor(np.array(alpha, np.float32))
        return op.Sub(op.Constant(value=one), op.Mul(whole, op.Constant(value=factor)))
    scaled = self if alpha == 1 else op.Mul(self, number(alpha, self))
    return op.Sub(number(other, self), scaled)


def arange(
    start: Any,
    end: Any,
    step: Any = 1,
    dtype: int = -1,
    layout: str = "",
    device: str = "",
    pin_memory: bool = False,
) -> Value:
    """Count as torch does: from 1/6 to 1 by 1/6 it makes 6 numbers, ``Range`` in fp32 5.

    Fractions are constants: their numbers are written out.
    """
    given = (start, end, step)
    if any(isinstance(x, float) for x in given) and all(isinstance(x, (int, float)) for x in given):
        wanted = onnx_ir.DataType(dtype) if dtype != -1 else onnx_ir.DataType.FLOAT
        numbers = torch.arange(start, end, step, dtype=torch.float32).numpy()
        return op.Constant(value=onnx_ir.tensor(numbers.astype(wanted.numpy())))
    return aten_arange_start_step(start, end, step, dtype)


def where(condition: Value, self: Value, other: Value) -> Value:
    """ONNX Runtime chooses between numbers only, not between truth values."""
    if self.dtype != onnx_ir.DataType.BOOL:
        return op.Where(condition, self, other)
    return op.Or(op.And(condition, self), op.And(op.Not(condition), other))


def squeeze_dims(self: Value, dim: int | Sequence[int]) -> Value:
    """In torch, squeezing a dim that is not 1 does nothing; ONNX calls it an error."""
    dims = [d % max(len(self.shape), 1) for d in ([dim] if isinstance(dim, int) else dim)]
    ones = [d for d in dims if len(self.shape) and self.shape[d] == 1]
    return op.Squeeze(self, ints(*ones)) if ones else op.Identity(self)


def masked_scatter(self: Value, mask: Value, source: Value) -> Value:
    """Whole rows are looked up, not elements scattered: 2 ms instead of 100 (576 rows of 4096).

    Sound because ``masked_scatter`` consumes ``source`` in row-major order: under a mask that is
    constant along the last dim, the n-th true row takes the n-th row of ``source``.
    """
    width = self.shape[-1] if _is_row_mask(self, mask, source) else 1
    if width == 1:
        self = op.Expand(self, op.Shape(mask))
        mask = op.Expand(mask, op.Shape(self))
    flat = op.Cast(op.Reshape(mask, ints(-1)), to=onnx_ir.DataType.INT64.value)
    nth = op.Max(op.Sub(op.CumSum(flat, op.Constant(value_int=0)), ints(1)), ints(0))
    looked_up = op.Gather(op.Reshape(source, ints(-1, width)), nth, axis=0)
    return op.Where(mask, op.Reshape(looked_up, op.Shape(self)), self)


def _is_row_mask(self: Value, mask: Value, source: Value) -> bool:
    whole, masked = list(self.shape), list(mask.shape)
    if len(whole) != len(masked) or len(whole) < 2 or not isinstance(whole[-1], int):
        return False
    return masked == [*whole[:-1], 1] and list(source.shape)[-1:] == whole[-1:]


TABLE: dict[Callable[..., Any], Callable[..., Any]] = {
    aten.arange.start_step: arange,
    aten.gather.default: gather,
    aten.masked_scatter.default: masked_scatter,
    aten.rsub.Scalar: rsub_scalar,
    aten.scaled_dot_product_attention.default: scaled_dot_product_attention,
    aten.scatter.src: scatter,
    aten.scatter_add.default: scatter_add,
    aten.sort.default: sort,
    aten.sort.stable: sort_stable,
    aten.squeeze.dim: squeeze_dims,
    aten.squeeze.dims: squeeze_dims,
    aten.where.self: where,
}
"""aten operator → translation."""
