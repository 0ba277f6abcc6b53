"""Precision: rewrites are judged in fp32 whatever the model's dtype.

A wrong position id moves logits by about 2e-3, which hides under bf16 tolerances.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind
from torch.fx.node import map_aggregate

HALF = frozenset({torch.float16, torch.bfloat16})


def full_precision(value: Any) -> Any:
    """Return a value (tensor, dtype, or lists of them) with fp32 for every half dtype."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return torch.float32 if leaf in HALF else leaf
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALF else leaf

    return map_aggregate(value, one)


def with_full_inputs(exported: ExportedProgram, values: Sequence[Any]) -> list[Any]:
    """Return the placeholders' values with the user's inputs in fp32, weights as they are.

    Interpreters convert what each call reads: a whole model in fp32 would be twice its size.
    """
    specs = exported.graph_signature.input_specs
    return [
        full_precision(value) if spec.kind is InputKind.USER_INPUT else value
        for spec, value in zip(specs, values, strict=True)
    ]
