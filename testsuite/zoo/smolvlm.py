"""SmolVLM: tiles of one prompt in one tensor, pixel shuffle."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration

from tokopt.cli.capture_request import Request


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = SmolVLMConfig(
        vision_config=dict(VISION),
        text_config=dict(TEXT) | {"model_type": "llama"},
        image_token_id=IMAGE,
        scale_factor=2,
    )
    return tiny(SmolVLMForConditionalGeneration, config, attention, seed)


def build(seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("smolvlm", model, Request(), seed)
