"""Idefics3: several tiles per prompt, pixel shuffle, one linear projection."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import Idefics3Config, Idefics3ForConditionalGeneration, LlamaConfig

from tokopt.cli.capture_request import Request

REQUEST = Request(images=2, prompt_length=25)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: 6x6 patches of a tile become 9 rows."""
    config = Idefics3Config(
        vision_config=dict(VISION),
        text_config=LlamaConfig(**TEXT),
        image_token_id=IMAGE,
        scale_factor=2,
        pad_token_id=0,
    )
    return tiny(Idefics3ForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for two tiles in a prompt."""
    return sample("idefics3", model, request, seed)
