"""The ONNX operators that translations write with, and constants of two kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir
from onnxscript import opset23

Value = Any
"""A value being traced; onnxscript has no public type for it."""

OPSET = 23
"""One ``Attention`` node per attention, whose inputs show how many tokens each layer sees; the
same or better speed than opset 20 on ONNX Runtime 1.32 CPU."""

op: Any = opset23
"""Typed as ``Any``: onnxscript's stubs refuse the results of its own operators as operands."""


def ints(*numbers: int) -> Value:
    """Return a constant vector of int64."""
    return op.Constant(value_ints=list(numbers))


def number(of: float, like: Value) -> Value:
    """Return a constant scalar with the dtype of ``like``."""
    return op.Constant(value=onnx_ir.tensor(np.array(of, like.dtype.numpy())))
