"""DINOv2 with registers: the backbone alone, every token an output."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import VISION, sample, tiny
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

from tokopt.cli.capture_request import Request

REQUEST = Request()


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    return tiny(
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**{**VISION, "mlp_ratio": 2, "num_register_tokens": 4}),
        attention,
        seed,
    )


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export the backbone's tokens."""
    return sample("dinov2_registers", model, request, seed)
