"""Shapes of published models with random weights: real widths, as many layers as asked for.

``share`` divides widths and heads (the width of a head stays), so that a script can be tried where
the real thing does not fit; what it says then says nothing of the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from testsuite.zoo.weights import randomise
from torch.export import ExportedProgram
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from tokopt.cli.capture_families import FAMILIES
from tokopt.cli.capture_request import Request

WORDS = 64


@dataclass(frozen=True)
class Shape:
    """``config(layers, share)`` of a model class whose consumer really has ``layers``.

    ``tower``: its tower's layers, 0 where it has none or is one.  ``visual``: tokens of one image
    at the size of the request, in the consumer.
    """

    kind: Any
    config: Callable[[int, int], Any]
    layers: int
    visual: int
    request: Request
    tower: int = 0

    def export(self, layers: int, dtype: torch.dtype, share: int = 1) -> ExportedProgram:
        """Return the program with its inputs, as ``tokopt export`` captures the model."""
        config = self.config(layers, share)
        model = self.kind._from_config(config, attn_implementation="sdpa", dtype=dtype)
        model = randomise(model.eval().requires_grad_(False), 0)
        with torch.no_grad():
            return FAMILIES[model.config.model_type].prepare(model, self.request, {}).trace()


def _clip(share: int, layers: int = 24) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=1024 // share,
        intermediate_size=4096 // share,
        num_hidden_layers=layers,
        num_attention_heads=16 // share,
        image_size=336,
        patch_size=14,
    )


def _vicuna(layers: int, share: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4096 // share,
        intermediate_size=11008 // share,
        num_hidden_layers=layers,
        num_attention_heads=32 // share,
        vocab_size=32064,
        max_position_embeddings=4096,
        pad_token_id=0,
    )


def _llava(layers: int, share: int) -> LlavaConfig:
    return LlavaConfig(
        vision_config=_clip(share), text_config=_vicuna(layers, share), image_token_index=32000
    )


def _llava_next(layers: int, share: int) -> LlavaNextConfig:
    return LlavaNextConfig(
        vision_config=_clip(share),
        text_config=_vicuna(layers, share),
        image_token_index=32000,
        image_grid_pinpoints=[[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]],
    )


def _qwen(layers: int, share: int) -> Qwen2_5_VLConfig:
    vision = dict(
        depth=8,
        hidden_size=1280 // share,
        out_hidden_size=3584 // share,
        intermediate_size=3420 // share,
        num_heads=16 // share,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=112,
        fullatt_block_indexes=(7,),
    )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = dict(
        hidden_size=3584 // share,
        intermediate_size=18944 // share,
        num_hidden_layers=layers,
        num_attention_heads=28 // share,
        num_key_value_heads=4 // share,
        vocab_size=152064,
        rope_parameters=rope,
    )
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text)


SHAPES = {
    "vit-l-14-336": Shape(
        CLIPVisionModel, lambda layers, share: _clip(share, layers), 24, 576, Request()
    ),
    "llava-1.5-7b": Shape(
        LlavaForConditionalGeneration,
        _llava,
        32,
        576,
        Request(prompt_length=576 + WORDS),
        tower=24,
    ),
    "llava-next-7b": Shape(  # the picture whole and in 2x2 tiles, a newline behind each of 48 lines
        LlavaNextForConditionalGeneration,
        _llava_next,
        32,
        5 * 576 + 48,
        Request((672, 672), 5 * 576 + 48 + WORDS),
        tower=24,
    ),
    "qwen2.5-vl-7b": Shape(  # 64 x 64 patches, merged by fours; 8 tower layers of 32
        Qwen2_5_VLForConditionalGeneration,
        _qwen,
        28,
        1024,
        Request((896, 896), 1024 + WORDS),
        tower=8,
    ),
}
"""By name; what is real of them is the widths, the pictures, the token counts, and the towers but
Qwen's: its windows are exported as an attention each, 64 in a layer."""
