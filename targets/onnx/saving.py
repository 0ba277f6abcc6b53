"""Write an ONNX model: one file, weights beside it only where protobuf would not hold them."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir

from tokopt.ir.errors import InternalError

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"

INSIDE_LIMIT = 1 << 30
"""Bytes of weights kept inside the model file; protobuf ends at 2 GiB, and reading needs twice."""


def save(model: onnx_ir.Model, folder: Path) -> tuple[str, ...]:
    """Write ``model`` into ``folder``, check it with onnx's checker, return the file names."""
    size = sum(w.const_value.nbytes for w in model.graph.initializers.values() if w.const_value)
    outside = size > INSIDE_LIMIT
    path = folder / MODEL
    onnx_ir.save(model, path, external_data=WEIGHTS if outside else None)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(
            f"the ONNX model written does not pass onnx's checker: {error}", where=str(path)
        ) from error
    return (MODEL, WEIGHTS) if outside else (MODEL,)
