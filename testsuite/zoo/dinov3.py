"""DINOv3: a class token, registers, rotary positions of two axes."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import VISION, sample, tiny
from transformers import DINOv3ViTConfig, DINOv3ViTModel

from tokopt.cli.capture_request import Request

REQUEST = Request()


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    return tiny(DINOv3ViTModel, DINOv3ViTConfig(**VISION, num_register_tokens=4), attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export the backbone's tokens."""
    return sample("dinov3", model, request, seed)
