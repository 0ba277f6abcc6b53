"""Swin: windows, shifted every second layer, patches merged 2x2 between stages."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import SIDE, sample, tiny
from transformers import SwinConfig, SwinModel

from tokopt.cli.capture_request import Request

REQUEST = Request()


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: 12x12 patches in windows of 6x6, then 6x6 in one."""
    config = SwinConfig(
        image_size=SIDE,
        patch_size=4,
        embed_dim=20,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=6,
    )
    return tiny(SwinModel, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export the last stage's tokens."""
    return sample("swin", model, request, seed)
