"""SigLIP's vision tower: no class token; a pooling head that no output reads."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import VISION, sample, tiny
from transformers import SiglipVisionConfig, SiglipVisionModel

from tokopt.cli.capture_request import Request

REQUEST = Request()


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    return tiny(SiglipVisionModel, SiglipVisionConfig(**VISION), attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export the backbone's tokens."""
    return sample("siglip_vision", model, request, seed)
