"""Mistral3: a Pixtral tower, patches merged 2x2 by unfolding each image."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import (
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
)

from tokopt.cli.capture_request import Request

REQUEST = Request((48, 32), 17)
"""6x4 patches, 6 merged rows."""


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**VISION),
        text_config=MistralConfig(**TEXT, head_dim=14, sliding_window=None),
        image_token_index=IMAGE,
        spatial_merge_size=2,
    )
    return tiny(Mistral3ForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("mistral3", model, request, seed)
