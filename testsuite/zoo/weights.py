"""Random weights that make a tiny model's output depend on what its attention looks at."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)

GAIN = 1.25
"""Matrices keep variance times GAIN²: attention logits get a spread of about 1.5, hence peaks."""


@torch.no_grad()
def randomise(module: Model, seed: int) -> Model:
    """Overwrite every parameter of ``module`` in place from ``seed``; return the module.

    Library defaults (std 0.02, zero biases, unit norms) make attention uniform and hide a wrong
    token, mask or position below any tolerance.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        matrix = isinstance(part, nn.Linear | nn.Conv2d | nn.Conv3d)
        for parameter in part.parameters(recurse=False):
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1 and bool((parameter == parameter[0]).all()):
                parameter.add_(0.2 * values)  # norm or layer scale, zero bias: near what it was
            elif matrix:
                parameter.copy_(GAIN * values / (parameter[0].numel() ** 0.5))
            else:  # embeddings, class tokens, position tables, biases that were random
                parameter.copy_(0.7 * values)
    return module


def noise(*shape: int, seed: int) -> torch.Tensor:
    """Return standard normal values of ``shape``; the same for the same seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))
