"""LLaVA-NeXT: a thumbnail and a grid of tiles, cropped to the photo, a newline after each row."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, SIDE, TEXT, VISION, sample, tiny
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from tokopt.cli.capture_request import Request

PINPOINTS = [[SIDE, 2 * SIDE], [2 * SIDE, SIDE], [2 * SIDE, 2 * SIDE]]
REQUEST = Request((30, 90), 97)
"""A photo whose best grid is 1x2 tiles: 36 rows of the thumbnail and 4 of 12 and a newline."""


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        image_grid_pinpoints=PINPOINTS,
    )
    return tiny(LlavaNextForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one photo in a prompt."""
    return sample("llava_next", model, request, seed)
