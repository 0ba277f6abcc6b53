"""BLIP-2: learned queries read the image by cross-attention; their rows enter the prompt."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig

from tokopt.cli.capture_request import Request

QUERIES = 11
REQUEST = Request(prompt_length=QUERIES + 8)


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    text = OPTConfig(
        hidden_size=TEXT["hidden_size"],
        ffn_dim=TEXT["intermediate_size"],
        num_hidden_layers=3,
        num_attention_heads=4,
        vocab_size=TEXT["vocab_size"],
        word_embed_proj_dim=TEXT["hidden_size"],
        max_position_embeddings=128,
    )
    queries = dict(
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=3,
        encoder_hidden_size=VISION["hidden_size"],
        vocab_size=TEXT["vocab_size"],
    )
    config = Blip2Config(
        vision_config=dict(VISION),
        qformer_config=queries,
        text_config=text.to_dict(),
        num_query_tokens=QUERIES,
        image_token_index=IMAGE,
    )
    return tiny(Blip2ForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("blip2", model, request, seed)
