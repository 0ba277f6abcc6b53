"""DINOv2 without registers: a class token and layer scale."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import VISION, sample, tiny
from transformers import Dinov2Config, Dinov2Model

from tokopt.cli.capture_request import Request

REQUEST = Request()


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    return tiny(Dinov2Model, Dinov2Config(**{**VISION, "mlp_ratio": 2}), attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export the backbone's tokens."""
    return sample("dinov2_plain", model, request, seed)
