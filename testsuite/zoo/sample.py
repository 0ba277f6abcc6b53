"""Sample: a tiny random model as the compiler meets it, with what a test needs to judge it by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram


@dataclass(frozen=True)
class Sample:
    """An exported tiny model and its eager twin.

    ``inputs`` is what ``exported`` was traced with (also its ``example_inputs``);
    ``other_inputs`` are further valid inputs, of other sizes where the program is dynamic.
    ``eager`` has the same weights and explicit softmax attention; all are called as ``f(*inputs)``
    and return one tensor.
    """

    name: str
    exported: ExportedProgram
    inputs: tuple[Tensor, ...]
    eager: nn.Module
    other_inputs: tuple[tuple[Tensor, ...], ...] = field(default=())

    @property
    def all_inputs(self) -> tuple[tuple[Tensor, ...], ...]:
        """The traced inputs, then the others."""
        return (self.inputs, *self.other_inputs)


def capture(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    dynamic_shapes: tuple[Mapping[int, object], ...] | None = None,
) -> ExportedProgram:
    """Export ``module`` as a user would: eval, no gradients, ``strict=False``; nothing stripped."""
    module = module.eval().requires_grad_(False)
    with torch.no_grad():
        return torch.export.export(module, inputs, dynamic_shapes=dynamic_shapes, strict=False)
