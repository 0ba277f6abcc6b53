"""LightOnOCR: a Pixtral tower merged 2x2, a decoder with norms of queries and keys."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import (
    LightOnOcrConfig,
    LightOnOcrForConditionalGeneration,
    PixtralVisionConfig,
    Qwen3Config,
)

from tokopt.cli.capture_request import Request

REQUEST = Request((48, 32), 17)
"""6x4 patches, 6 merged rows."""


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = LightOnOcrConfig(
        vision_config=PixtralVisionConfig(**VISION).to_dict(),
        text_config=Qwen3Config(**TEXT, head_dim=14).to_dict(),
        image_token_id=IMAGE,
        spatial_merge_size=2,
    )
    return tiny(LightOnOcrForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("lighton_ocr", model, request, seed)
