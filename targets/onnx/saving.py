"""Write an ONNX model: small ones as one file, the weights of larger ones outside of it.

Weights that the artifact's program file holds already are referred to there (external data of
ONNX: file, offset, length), so that a folder holds them once, whatever number of models it has.
"""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir
import torch

from tokopt.ir.errors import InternalError
from tokopt.targets.onnx.written import refer_to_written
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.stored_weights import StoredWeights

MODEL, WEIGHTS = "model.onnx", "model.onnx.data"

INSIDE_LIMIT = 1 << 26
"""Bytes of weights kept inside the model file: writing and reading them takes three times that."""

SMALL = 1 << 10
"""Bytes up to which a weight stays inside in any case."""

LIST = 1 << 20
"""Bytes up to which a list of whole numbers does: onnx's checker must read sizes and axes."""


def save(
    model: onnx_ir.Model, folder: Path, weights: StoredWeights | None = None, part: str = FIRST
) -> tuple[str, ...]:
    """Write ``model`` into ``folder``, check it with onnx's checker, return the file names."""
    files = [of_part(MODEL, part)]
    shared = weights is not None and weights.shared
    if shared or sum(_bytes(value) for value in _inside(model)) > INSIDE_LIMIT:
        if weights is not None:
            _refer(model, weights)
        if part != FIRST:
            refer_to_written([value for value in _inside(model) if not _stays(value)], folder)
        values = [value for value in _inside(model) if not _stays(value)]
        if values:
            files.append(of_part(WEIGHTS, part))
            _write_out(values, folder, files[-1])
    path = folder / files[0]
    onnx_ir.save(model, path)
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InternalError(
            f"the ONNX model written does not pass onnx's checker: {error}", where=str(path)
        ) from error
    return tuple(files)


def _inside(model: onnx_ir.Model) -> list[onnx_ir.Value]:
    """Return the weights that the model file would hold."""
    return [
        value
        for value in model.graph.initializers.values()
        if value.const_value and not isinstance(value.const_value, onnx_ir.ExternalTensor)
    ]


def _bytes(value: onnx_ir.Value) -> int:
    return value.const_value.nbytes if value.const_value else 0


def _stays(value: onnx_ir.Value) -> bool:
    """Return whether a weight stays inside whatever the model's size."""
    tensor = value.const_value
    numbers = (onnx_ir.DataType.INT32, onnx_ir.DataType.INT64)
    listed = tensor is not None and tensor.dtype in numbers and len(tensor.shape) < 2
    return _bytes(value) <= (LIST if listed else SMALL)


def _refer(model: onnx_ir.Model, weights: StoredWeights) -> None:
    """Let every weight that the program file holds be read from there."""
    for value in _inside(model):
        tensor = value.const_value
        raw = getattr(tensor, "raw", None)
        place = weights.place(raw) if isinstance(raw, torch.Tensor) else None
        if place is not None and tensor is not None and not _stays(value):
            shape, name = onnx_ir.Shape(tensor.shape.numpy()), str(value.name)
            value.const_value = onnx_ir.ExternalTensor(
                weights.file, place, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )


def _write_out(values: list[onnx_ir.Value], folder: Path, file: str) -> None:
    """Write weights one after the other into a file beside the model."""
    tensors = [value.const_value for value in values if value.const_value]
    written = onnx_ir.external_data.convert_tensors_to_external(tensors, folder, file)
    for value, tensor in zip(values, written, strict=True):
        value.const_value = tensor
