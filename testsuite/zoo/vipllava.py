"""VipLLaVA: rows of several tower layers side by side, class row cut off."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    VipLlavaConfig,
    VipLlavaForConditionalGeneration,
)

from tokopt.cli.capture_request import Request


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = VipLlavaConfig(
        vision_config=CLIPVisionConfig(**VISION).to_dict(),
        text_config=LlamaConfig(**TEXT).to_dict(),
        image_token_index=IMAGE,
        vision_feature_layers=[-1, -2],
    )
    return tiny(VipLlavaForConditionalGeneration, config, attention, seed)


def build(seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("vipllava", model, Request(), seed)
