"""LLaVA-OneVision: any-resolution tiles through a tower without a class token."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.llava_next import PINPOINTS
from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, SIDE, TEXT, VIDEO, VISION, sample, tiny
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    SiglipVisionConfig,
)

from tokopt.cli.capture_request import Request

REQUEST = Request((2 * SIDE, SIDE - 10), 130)
"""A photo of two tiles above one another, cropped on both sides."""


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = LlavaOnevisionConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=PINPOINTS,
    )
    return tiny(LlavaOnevisionForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one photo in a prompt."""
    return sample("llava_onevision", model, request, seed)
