"""Mllama: tiles enter one decoder layer by cross-attention; no visual row is in the text."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import MllamaConfig, MllamaForConditionalGeneration

from tokopt.cli.capture_request import Request

REQUEST = Request(prompt_length=13)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model: at most two tiles, cross-attention in decoder layer 1."""
    vision = dict(
        VISION,
        num_hidden_layers=2,
        num_global_layers=2,
        attention_heads=2,
        max_num_tiles=2,
        intermediate_layers_indices=[0],
        supported_aspect_ratios=[[1, 1], [1, 2], [2, 1]],
        vision_output_dim=80,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    text = dict(TEXT, cross_attention_layers=[1], rope_parameters=rope)
    config = MllamaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return tiny(MllamaForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image of two tiles."""
    return sample("mllama", model, request, seed)
