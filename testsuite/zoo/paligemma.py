"""PaliGemma: image and prompt attend in both directions (a prefix language model)."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import (
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from tokopt.cli.capture_request import Request

REQUEST = Request(prompt_length=45)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    text = GemmaConfig(**{**TEXT, "num_key_value_heads": 1, "head_dim": 14})
    config = PaliGemmaConfig(
        vision_config=SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=text,
        image_token_index=IMAGE,
        projection_dim=56,
        hidden_size=56,
    )
    return tiny(PaliGemmaForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("paligemma", model, request, seed)
