"""Programs of dialect calls, run as they are, in plain aten, and in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, export

from tokopt.passes.decompose import decompose, dialect_nodes
from tokopt.targets.calling import runner_of
from tokopt.targets.registry import find
from tokopt.targets.signature import signature_of


class Calls(nn.Module):
    """``compute(tensors)`` as a module."""

    def __init__(self, compute: Callable[[list[Tensor]], Any]) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, tensors: list[Tensor]) -> Any:
        return self.compute(tensors)


def exported(
    compute: Callable[[list[Tensor]], Any], tensors: list[Tensor], shapes: Any = None
) -> ExportedProgram:
    dynamic = None if shapes is None else {"tensors": shapes}
    with torch.no_grad():
        program = export(Calls(compute), (tensors,), dynamic_shapes=dynamic)
    assert dialect_nodes(program.graph)
    return program


def three_ways(program: ExportedProgram, folder: Path) -> list[Callable[[list[Tensor]], Any]]:
    """Return ``program`` as three functions: as it is, in plain aten, in ONNX Runtime."""
    plain = decompose(program)
    assert dialect_nodes(plain.graph) == []
    target = find("onnxruntime-cpu")
    target.lower(plain, folder)
    runners = [runner_of(program), runner_of(plain), target.open(folder)]
    names = [spec.name for spec in signature_of(plain).inputs]

    def of(runner: Any) -> Callable[[list[Tensor]], Any]:
        return lambda ts: list(runner(dict(zip(names, ts, strict=True))).values())

    return [of(runner) for runner in runners]
