"""GLM-4V: packed patches, positions interpolated, a merger by convolution, three-axis positions."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, sample, tiny
from transformers import Glm4vConfig, Glm4vForConditionalGeneration

from tokopt.cli.capture_request import Request

ROPE = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [1, 3, 3],
    "partial_rotary_factor": 1.0,
}
REQUEST = Request((48, 80), 26)
"""6x10 patches, 15 merged rows."""


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = Glm4vConfig(
        vision_config=dict(
            depth=3,
            hidden_size=40,
            num_heads=2,
            image_size=48,
            patch_size=8,
            out_hidden_size=TEXT["hidden_size"],
            intermediate_size=72,
            spatial_merge_size=2,
            temporal_patch_size=2,
        ),
        text_config=dict(TEXT) | {"rope_parameters": ROPE},
        image_token_id=IMAGE,
    )
    return tiny(Glm4vForConditionalGeneration, config, attention, seed)


def build(request: Request = REQUEST, seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("glm4v", model, request, seed)
