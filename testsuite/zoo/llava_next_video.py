"""LLaVA-NeXT-Video: frames of a video, each pooled 2x2."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VIDEO, VISION, sample, tiny
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaNextVideoConfig,
    LlavaNextVideoForConditionalGeneration,
)

from tokopt.cli.capture_request import Request

FRAMES = 5
REQUEST = Request(frames=FRAMES, prompt_length=9 * FRAMES + 8)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: a frame of 6x6 patches becomes 9 rows."""
    config = LlavaNextVideoConfig(
        vision_config=CLIPVisionConfig(**VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    return tiny(LlavaNextVideoForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one video in a prompt."""
    return sample("llava_next_video", model, request, seed)
