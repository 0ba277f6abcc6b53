"""InternVL: pixel shuffle folds 2x2 patches into one row's width."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, PATCH, SIDE, TEXT, VISION, sample, tiny
from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

from tokopt.cli.capture_request import Request

REQUEST = Request(prompt_length=17)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: 6x6 patches become 9 rows."""
    vision = {**VISION, "image_size": [SIDE, SIDE], "patch_size": [PATCH, PATCH]}
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**TEXT),
        image_token_id=IMAGE,
        image_seq_length=9,
    )
    return tiny(InternVLForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("internvl", model, request, seed)
