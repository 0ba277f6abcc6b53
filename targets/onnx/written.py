"""Written: the weights that other ONNX models of a folder have beside them already, by content.

Lowering transposes weights and folds that, so they are not the bytes of ``program.pt2``; models
of several budgets all do it alike.  Bytes are compared by sha256; nothing else is kept in memory.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import onnx_ir


def refer_to_written(values: list[onnx_ir.Value], folder: Path) -> None:
    """Let every weight whose bytes lie beside another model of ``folder`` be read from there."""
    known = _known(folder)
    for value in values:
        tensor = value.const_value
        if tensor is None:
            continue
        place = known.get(hashlib.sha256(tensor.tobytes()).digest())
        if place is not None:
            shape, name = onnx_ir.Shape(tensor.shape.numpy()), str(value.name)
            value.const_value = onnx_ir.ExternalTensor(
                *place, tensor.nbytes, tensor.dtype, shape=shape, name=name
            )


def _known(folder: Path) -> dict[bytes, tuple[str, int]]:
    """Return the file and offset of every such weight, by the sha256 of its bytes."""
    places = {
        (where["location"], int(where["offset"]), int(where["length"]))
        for path in sorted(folder.glob("*.onnx"))
        for weight in onnx.load(path, load_external_data=False).graph.initializer
        if (where := {entry.key: entry.value for entry in weight.external_data})
        and where["location"].endswith(".data")
    }
    known: dict[bytes, tuple[str, int]] = {}
    for location, offset, length in sorted(places):
        with (folder / location).open("rb") as file:
            file.seek(offset)
            known[hashlib.sha256(file.read(length)).digest()] = (location, offset)
    return known
