"""Gemma3: an image's rows see each other in both directions; sliding-window layers."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import END, IMAGE, START, TEXT, VISION, sample, tiny
from transformers import (
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    SiglipVisionConfig,
)

from tokopt.cli.capture_request import Request

REQUEST = Request(prompt_length=25)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: 6x6 patches are pooled to 9 rows; windows of 7 tokens."""
    text = Gemma3TextConfig(
        **{**TEXT, "num_hidden_layers": 4},
        head_dim=14,
        sliding_window=7,
        layer_types=["sliding_attention", "full_attention"] * 2,
    )
    config = Gemma3Config(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=text,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
        mm_tokens_per_image=9,
    )
    return tiny(Gemma3ForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("gemma3", model, request, seed)
