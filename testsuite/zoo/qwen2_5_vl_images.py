"""Qwen2.5-VL with two images in a prompt: windows of both in one dim, each image's rows its own."""

from __future__ import annotations

from typing import Any

from testsuite.zoo import qwen2_5_vl
from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import sample

from tokopt.cli.capture_request import Request

REQUEST = Request((64, 96), 60, images=2)
"""Two images of 8x12 patches, 24 merged rows each."""


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    return qwen2_5_vl.model(attention=attention, seed=seed, vision_layers=3, layers=3)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for two images in a prompt."""
    return sample("qwen2_5_vl_images", model, request, seed)
