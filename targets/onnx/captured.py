"""Captured: a session whose run is one CUDA graph, launched whole instead of kernel by kernel.

ONNX Runtime captures where its CUDA provider is asked to (``enable_cuda_graph``), and replays what
it captured at the addresses it captured it at.  So inputs and outputs lie in tensors made once,
what is given is copied there, and what is returned are copies: the next run writes over them.  The
runtime's own conditions (its pull requests 9978 and 19636): every input and output is a tensor of
constant sizes, no control flow, every call on the CUDA provider.  ``barrier`` tells the first two
from a model; the last one the runtime checks when it opens a session, and what else prevents it
shows in a first run, on zeros.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from torch import Tensor

from tokopt.targets.base import Runner
from tokopt.targets.onnx.bound import numpy_type

CONTROL = ("If", "Loop", "Scan")
TRIED = 2
ASKED = {"enable_cuda_graph": "1"}
"""What the CUDA provider is asked for."""


def barrier(model: Path) -> str | None:
    """Return why a saved model's run is no one CUDA graph, ``None`` where it may be one.

    Weights are not read.
    """
    graph = onnx_ir.serde.deserialize_model(onnx.load(model, load_external_data=False)).graph
    for value in (*graph.inputs, *graph.outputs):
        if value.shape is None:
            return f"the sizes of {value.name} are not known"
        free = next((size for size in value.shape if not isinstance(size, int)), None)
        if free is not None:
            return f"the size {free} of {value.name} is free"
    for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
        if node.op_type in CONTROL and not node.domain:
            return f"{node.name or node.op_type} is a loop or a branch ({node.op_type})"
    return None


def captured_runner(session: onnxruntime.InferenceSession, device: torch.device) -> Runner:
    """Return a function that runs a session of constant sizes at fixed addresses of a device.

    Outputs are copies on the device.  Runs it on zeros, which captures, and once more, which
    replays; raises what ONNX Runtime does where it cannot.
    """
    place = (device.type, device.index or 0)
    ends = [session.get_inputs(), session.get_outputs()]
    given, made = ({one.name: _fixed(one, device) for one in side} for side in ends)
    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, given), (binding.bind_output, made)):
        for name, value in tensors.items():
            bind(name, *place, numpy_type(value.dtype), tuple(value.shape), value.data_ptr())

    for _ in range(TRIED):
        session.run_with_iobinding(binding)

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        for name, value in given.items():
            if inputs[name].shape != value.shape:
                sizes = f"{list(inputs[name].shape)}, not {list(value.shape)}"
                raise ValueError(f"{name} is {sizes}, for which the graph was captured")
            value.copy_(inputs[name].detach())
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # the session has a stream of its own
        session.run_with_iobinding(binding)
        return {name: value.clone() for name, value in made.items()}

    return run


def _fixed(end: onnxruntime.NodeArg, device: torch.device) -> Tensor:
    kind = end.type.removeprefix("tensor(").removesuffix(")")
    named = {"float": "float32", "double": "float64"}.get(kind, kind)
    dtype = torch.from_numpy(np.empty(0, dtype=named)).dtype
    return torch.zeros(end.shape, dtype=dtype, device=device)
