"""Shapes of published models with random weights: real widths, as many layers as asked for.

``share`` divides widths and heads (the width of a head stays), so that a script can be tried where
the real thing does not fit; what it says then says nothing of the real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class Scale:
    """How far from the real thing: ``patches`` along a tile's side, a tower's ``depth`` (of CLIP).

    ``vocabulary`` stands for every model's own where it is not None.
    """

    patches: int = 24
    words: int = WORDS
    depth: int = 24
    vocabulary: int | None = None

    @property
    def tiny(self) -> bool:
        """Whether it says nothing of the real thing."""
        return self.patches != 24


REAL, TINY = Scale(), Scale(4, 8, 2, 512)


def _clip(scale: Scale, share: int, layers: int) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=1024 // share,
        intermediate_size=4096 // share,
        num_hidden_layers=layers,
        num_attention_heads=16 // share,
        image_size=14 * scale.patches,
        patch_size=14,
    )


def _vicuna(scale: Scale, share: int, layers: int) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4096 // share,
        intermediate_size=11008 // share,
        num_hidden_layers=layers,
        num_attention_heads=32 // share,
        vocab_size=scale.vocabulary or 32064,
        max_position_embeddings=4096,
        pad_token_id=0,
    )


def _image(scale: Scale) -> int:
    """Return the id of the image token, behind the words."""
    return (scale.vocabulary or 32064) - 64


def _llava(scale: Scale, layers: int, share: int) -> LlavaConfig:
    return LlavaConfig(
        vision_config=_clip(scale, share, scale.depth),
        text_config=_vicuna(scale, share, layers),
        image_token_index=_image(scale),
    )


def _llava_next(scale: Scale, layers: int, share: int) -> LlavaNextConfig:
    side = 14 * scale.patches
    return LlavaNextConfig(
        vision_config=_clip(scale, share, scale.depth),
        text_config=_vicuna(scale, share, layers),
        image_token_index=_image(scale),
        image_grid_pinpoints=[
            [side * down, side * across]
            for down, across in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
        ],
    )


def _qwen(scale: Scale, layers: int, share: int) -> Qwen2_5_VLConfig:
    depth = 2 if scale.tiny else 8
    vision = dict(
        depth=depth,
        hidden_size=1280 // share,
        out_hidden_size=3584 // share,
        intermediate_size=3420 // share,
        num_heads=16 // share,
        patch_size=14,
        temporal_patch_size=2,
        spatial_merge_size=2,
        window_size=56 if scale.tiny else 112,
        fullatt_block_indexes=(depth - 1,),
    )
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    text = dict(
        hidden_size=3584 // share,
        intermediate_size=18944 // share,
        num_hidden_layers=layers,
        num_attention_heads=28 // share,
        num_key_value_heads=4 // share,
        vocab_size=scale.vocabulary or 152064,
        rope_parameters=rope,
    )
    ids = {}
    if scale.vocabulary is not None:
        kinds = ("image", "video", "vision_start", "vision_end")
        ids = {f"{kind}_token_id": _image(scale) + at for at, kind in enumerate(kinds)}
    return Qwen2_5_VLConfig(vision_config=vision, text_config=text, **ids)


def shapes(scale: Scale) -> dict[str, Shape]:
    """Return every shape by name.

    What is real of them at ``REAL`` is the widths, the pictures, the token counts, and the towers
    but Qwen's: its windows are exported as an attention each, 64 in a layer.
    """
    side, one, words = 14 * scale.patches, scale.patches**2, scale.words
    tiles = 5 * one + 2 * scale.patches  # whole and in 2x2 tiles, a newline behind each line
    grid = 8 if scale.tiny else 64  # patches, merged by fours
    merged = grid**2 // 4
    return {
        "vit-l-14-336": Shape(
            CLIPVisionModel,
            lambda layers, share: _clip(scale, share, layers),
            24,
            one,
            Request(),
        ),
        "llava-1.5-7b": Shape(
            LlavaForConditionalGeneration,
            partial(_llava, scale),
            32,
            one,
            Request(None, one + words),
            tower=scale.depth,
        ),
        "llava-next-7b": Shape(
            LlavaNextForConditionalGeneration,
            partial(_llava_next, scale),
            32,
            tiles,
            Request((2 * side, 2 * side), tiles + words),
            tower=scale.depth,
        ),
        "qwen2.5-vl-7b": Shape(
            Qwen2_5_VLForConditionalGeneration,
            partial(_qwen, scale),
            28,
            merged,
            Request((14 * grid, 14 * grid), merged + words),
            tower=2 if scale.tiny else 8,
        ),
    }


SHAPES, TINY_SHAPES = shapes(REAL), shapes(TINY)
