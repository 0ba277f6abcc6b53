"""Bound: a session whose inputs and outputs stay on its device (ONNX Runtime's I/O binding).

What one run gives, the next is given where it lies: a cache on a GPU never crosses to the host.
Where a model says that it writes the new rows of caches in place (``counted.py``), it does.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tokopt.targets.base import Runner
from tokopt.targets.onnx.counted import read_in_place
from tokopt.targets.onnx.growing import ROWS, Buffers

BOOL = "tensor(bool)"


def bound_runner(session: onnxruntime.InferenceSession, device: torch.device) -> Runner:
    """Return a function that runs a session on tensors of a device; those elsewhere are copied.

    ``device`` has an index where there are several of its kind.
    """
    names = [output.name for output in session.get_outputs()]
    place = (device.type, device.index or 0)
    in_place = read_in_place(session.get_modelmeta().custom_metadata_map)
    buffers = Buffers()

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        binding = session.io_binding()
        given = {name: value.detach() for name, value in inputs.items()}
        grown = dict[str, tuple[Tensor, int]]()
        for name, how in in_place.items():
            rows = inputs[name].to(device)
            given[name] = buffers.room_behind(rows)
            if how.rows is not None:
                given[how.rows] = torch.tensor([rows.shape[ROWS]])
            grown[how.grown] = given[name], rows.shape[ROWS] + 1
        here = {name: value.to(device).contiguous() for name, value in given.items()}
        for name, value in here.items():
            binding.bind_input(name, *place, *_form(value))
        for name in names:
            known = _form(grown[name][0]) if name in grown else ()
            binding.bind_output(name, *place, *known)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the session has a stream of its own
        session.run_with_iobinding(binding)
        found = dict(zip(names, binding.get_outputs(), strict=True))
        return {
            name: buffers.hand_out(*grown[name]) if name in grown else _tensor(value)
            for name, value in found.items()
        }

    return run


def _form(value: Tensor) -> tuple[type[np.generic], tuple[int, ...], int]:
    """Return what a binding must know of a tensor's memory."""
    return numpy_type(value.dtype), tuple(value.shape), value.data_ptr()


def numpy_type(dtype: torch.dtype) -> type[np.generic]:
    """Return the type by which a binding knows a dtype."""
    found: type[np.generic] = torch.empty(0, dtype=dtype).numpy().dtype.type
    return found


def _tensor(value: onnxruntime.OrtValue) -> Tensor:
    """Return an output where it lies; the tensor keeps it alive."""
    given: Tensor = from_dlpack(value)
    return given.bool() if value.data_type() == BOOL else given  # told as bytes by some versions
