"""Cohere2 Vision: pixel shuffle, a decoder whose attention and MLP stand side by side."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import (
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    SiglipVisionConfig,
)

from tokopt.cli.capture_request import Request


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = Cohere2VisionConfig(
        vision_config=SiglipVisionConfig(**VISION).to_dict(),
        text_config=Cohere2Config(**TEXT).to_dict(),
        image_token_id=IMAGE,
        downsample_factor=2,
        alignment_intermediate_size=64,
    )
    return tiny(Cohere2VisionForConditionalGeneration, config, attention, seed)


def build(seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("cohere2_vision", model, Request(), seed)
