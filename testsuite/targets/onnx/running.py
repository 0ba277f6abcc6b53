"""Translate one module, run it in ONNX Runtime, and compare with torch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn
from torch.export import export

from tokopt.targets.calling import runner_of
from tokopt.targets.compare import Tolerance, compare
from tokopt.targets.registry import find


def agree(
    module: nn.Module,
    inputs: dict[str, Tensor],
    folder: Path,
    tolerance: Tolerance | None = None,
    shapes: dict[str, dict[int, object]] | None = None,
    *others: dict[str, Tensor],
) -> Counter[str]:
    """Assert that both give the same on ``inputs`` and ``others``; count the operators."""
    target = find("onnxruntime-cpu")
    with torch.no_grad():
        exported = export(module, (), inputs, dynamic_shapes=shapes).run_decompositions({})
    target.lower(exported, folder)
    run, reference = target.open(folder), runner_of(exported)
    for given in (inputs, *others):
        assert compare(reference(given), run(given), tolerance) == []
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)
