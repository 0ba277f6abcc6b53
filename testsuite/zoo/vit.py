"""ViT: a class token and learned positions."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import VISION, sample, tiny
from transformers import ViTConfig, ViTModel

from tokopt.cli.capture_request import Request

REQUEST = Request()


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    return tiny(ViTModel, ViTConfig(**VISION), attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export the backbone's tokens."""
    return sample("vit", model, request, seed)
