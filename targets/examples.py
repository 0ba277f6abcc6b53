"""Zero tensors of allowed sizes for a program whose file carries no example inputs."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.tensors import tensor_inputs


def example_tensors(exported: ExportedProgram) -> dict[str, Tensor]:
    """Return a contiguous tensor of zeros for every input; symbols take their least size, or 2."""
    sizes = {
        symbol: max(int(span.lower), min(2, span.upper))
        for symbol, span in exported.range_constraints.items()
    }

    def size_of(size: int | torch.SymInt) -> int:
        return size if isinstance(size, int) else int(size.node.expr.subs(sizes))

    return {
        tensor.name: torch.zeros([size_of(s) for s in tensor.value.shape], dtype=tensor.value.dtype)
        for tensor in tensor_inputs(exported)
    }
