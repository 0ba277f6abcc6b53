"""GOT-OCR2: a SAM tower of windows on a plane, and convolutions behind it."""

from __future__ import annotations

from typing import Any

from testsuite.zoo.sample import Sample
from testsuite.zoo.tiny import IMAGE, TEXT, sample, tiny
from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration, Qwen2Config

from tokopt.cli.capture_request import Request


def model(attention: str, seed: int) -> Any:
    """Return the tiny model."""
    config = GotOcr2Config(
        vision_config=dict(
            hidden_size=40,
            output_channels=16,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=8,
            window_size=4,
            global_attn_indexes=[2],
            mlp_dim=72,
        ),
        text_config=Qwen2Config(**TEXT).to_dict(),
        image_token_index=IMAGE,
    )
    return tiny(GotOcr2ForConditionalGeneration, config, attention, seed)


def build(seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    return sample("got_ocr2", model, Request(), seed, attention="eager")
