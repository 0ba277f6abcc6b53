"""Qwen3-VL: features of several tower layers are also added inside the decoder (deep-stack)."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.qwen2_vl import REQUEST, ROPE, TOKENS
from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import PATCH, TEXT, sample, tiny
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from tokopt.cli.capture_request import Request


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: tower layers 0 and 1 are injected into decoder layers 0 and 1."""
    vision = dict(
        depth=3,
        hidden_size=40,
        out_hidden_size=TEXT["hidden_size"],
        intermediate_size=72,
        num_heads=2,
        patch_size=PATCH,
        num_position_embeddings=25,
        deepstack_visual_indexes=(0, 1),
    )
    text = {**TEXT, "head_dim": 14, "rope_parameters": {**ROPE, "mrope_interleaved": True}}
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **TOKENS)
    return tiny(Qwen3VLForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("qwen3_vl", model, request, seed)
