"""Pixtral's tower: images packed by size, rotary positions, a block mask."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import VISION, sample, tiny
from transformers import PixtralVisionConfig, PixtralVisionModel

from tokopt.cli.capture_request import Request

REQUEST = Request()


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    return tiny(PixtralVisionModel, PixtralVisionConfig(**VISION), attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export the backbone's tokens."""
    return sample("pixtral_vision", model, request, seed)
