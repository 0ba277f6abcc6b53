"""Bound: a session whose inputs and outputs stay on its device (ONNX Runtime's I/O binding).

What one run gives, the next is given where it lies: a cache on a GPU never crosses to the host.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnxruntime
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from tokopt.targets.base import Runner

BOOL = "tensor(bool)"


def bound_runner(session: onnxruntime.InferenceSession, device: torch.device) -> Runner:
    """Return a function that runs a session on tensors of a device; those elsewhere are copied.

    ``device`` has an index where there are several of its kind.
    """
    names = [output.name for output in session.get_outputs()]
    place = (device.type, device.index or 0)

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        binding = session.io_binding()
        here = {name: value.detach().to(device).contiguous() for name, value in inputs.items()}
        for name, value in here.items():
            binding.bind_input(
                name, *place, numpy_type(value.dtype), tuple(value.shape), value.data_ptr()
            )
        for name in names:
            binding.bind_output(name, *place)
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the session has a stream of its own
        session.run_with_iobinding(binding)
        return dict(zip(names, map(_tensor, binding.get_outputs()), strict=True))

    return run


def numpy_type(dtype: torch.dtype) -> type[np.generic]:
    """Return the type by which a binding knows a dtype."""
    found: type[np.generic] = torch.empty(0, dtype=dtype).numpy().dtype.type
    return found


def _tensor(value: onnxruntime.OrtValue) -> Tensor:
    """Return an output where it lies; the tensor keeps it alive."""
    given: Tensor = from_dlpack(value)
    return given.bool() if value.data_type() == BOOL else given  # told as bytes by some versions
