"""Qwen2-VL: packed patches, full attention in the tower, 2x2 merger, three-axis positions."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import END, IMAGE, PATCH, START, TEXT, VIDEO, sample, tiny
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

from tokopt.cli.capture_request import Request

ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 3, 3]}
TOKENS = dict(
    image_token_id=IMAGE, video_token_id=VIDEO, vision_start_token_id=START, vision_end_token_id=END
)
REQUEST = Request((48, 80), 26)
"""6x10 patches, 15 merged rows."""


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    vision = dict(
        depth=3,
        embed_dim=40,
        hidden_size=TEXT["hidden_size"],
        num_heads=2,
        patch_size=PATCH,
        mlp_ratio=2,
    )
    text = {**TEXT, "rope_parameters": ROPE}
    config = Qwen2VLConfig(vision_config=vision, text_config=text, **TOKENS)
    return tiny(Qwen2VLForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("qwen2_vl", model, request, seed)
