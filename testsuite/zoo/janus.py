"""Janus: a SigLIP tower and an aligner; its image generator takes no part."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, VISION, sample, tiny
from transformers import JanusConfig, JanusForConditionalGeneration, LlamaConfig

from tokopt.cli.capture_request import Request


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = JanusConfig(
        vision_config=dict(VISION) | dict(projection_dim=TEXT["hidden_size"]),
        text_config=LlamaConfig(**TEXT).to_dict(),
        vq_config=dict(
            embed_dim=8,
            num_embeddings=16,
            latent_channels=8,
            num_patches=4,
            base_channels=32,
            channel_multiplier=[1, 1],
            num_res_blocks=1,
            projection_dim=32,
            image_token_embed_dim=32,
        ),
        image_token_id=IMAGE,
    )
    return tiny(JanusForConditionalGeneration, config, attention, seed)


def build(seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("janus", model, Request(), seed)
