"""Qwen3-VL with experts: two of four for each row, their weights looked up row by row."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.qwen2_vl import REQUEST, ROPE, TOKENS
from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import PATCH, TEXT, sample, tiny
from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration

from tokopt.cli.capture_request import Request


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
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
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24)
    rope = {**ROPE, "mrope_interleaved": True}
    text = {**TEXT, **experts, "head_dim": 14, "rope_parameters": rope}
    config = Qwen3VLMoeConfig(vision_config=vision, text_config=text, **TOKENS)
    made = tiny(Qwen3VLMoeForConditionalGeneration, config, attention, seed)
    made.set_experts_implementation("batched_mm")
    return made


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("qwen3_vl_moe", model, request, seed)
