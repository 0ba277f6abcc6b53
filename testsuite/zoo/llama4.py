"""Llama4: pixel shuffle, complex rotary positions, experts, chunked attention."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import END, IMAGE, START, TEXT, VISION, sample, tiny
from transformers import Llama4Config, Llama4ForConditionalGeneration

from tokopt.cli.capture_request import Request

REQUEST = Request(prompt_length=21)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: 6x6 patches become 9 rows; chunks of 8 tokens."""
    vision = dict(VISION, intermediate_size=160, vision_output_dim=48)
    vision |= dict(projector_input_dim=48, projector_output_dim=48, pixel_shuffle_ratio=0.5)
    text = dict(
        TEXT,
        head_dim=14,
        num_hidden_layers=4,
        intermediate_size_mlp=88,
        num_local_experts=3,
        num_experts_per_tok=1,
        interleave_moe_layer_step=2,
        attention_chunk_size=8,
    )
    config = Llama4Config(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        boi_token_index=START,
        eoi_token_index=END,
    )
    return tiny(Llama4ForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("llama4", model, request, seed)
