"""How Qwen2.5-VL is captured: the grid is a compile-time constant, positions are an input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tokopt.cli.capture import Capture, Inputs
from tokopt.cli.capture_prompt import prompt_length, sample_prompt
from tokopt.cli.capture_request import Request, noise
from tokopt.cli.static_tensor import FoldFactories, StaticTensor
from tokopt.ir.errors import InputError, UnsupportedError

DEFAULT_SIDE = 448
Grid = tuple[int, int, int]
"""Frames, rows and columns of patches of one image."""


class QwenLogits(nn.Module):
    """``(pixel_values [T,F], input_ids [1,S], position_ids [3,1,S]) -> logits [1,S,V]``.

    Tables of windows and positions are functions of the grid alone: they are computed while
    tracing.  Only the tower runs with folded factories; the decoder's masks stay in the graph.
    """

    def __init__(self, model: Any, grid: Grid) -> None:
        super().__init__()
        self.model, self.grid = model, StaticTensor.of(torch.tensor([grid]))

    def forward(self, pixel_values: Tensor, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return the logits of every position."""
        with FoldFactories():
            image = self.model.model.get_image_features(pixel_values, self.grid, return_dict=True)
        return self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            mm_encoder_outputs={"image": image},
            use_cache=False,
        ).logits


class PlainQwen(QwenLogits):
    """The model called as its library means it to be; it finds the positions by itself."""

    def forward(self, pixel_values: Tensor, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return the logits of every position; ``position_ids`` are not read."""
        return self.model(
            pixel_values=pixel_values,
            input_ids=input_ids,
            image_grid_thw=self.grid.as_subclass(torch.Tensor),
            mm_token_type_ids=(input_ids == self.model.config.image_token_id).int(),
            use_cache=False,
        ).logits


def positions(model: Any, input_ids: Tensor, grid: Grid) -> Tensor:
    """Return the three-axis positions ``[3,1,S]`` the library gives ids with one image."""
    found, _ = model.model.get_rope_index(
        input_ids=input_ids,
        mm_token_type_ids=(input_ids == model.config.image_token_id).int(),
        image_grid_thw=torch.tensor([grid]),
    )
    return found


def prepare(model: Any, request: Request, processor: Mapping[str, Any]) -> Capture:
    """Build samples for one image; its size must be whole merged patches."""
    if request.free_batch:
        raise UnsupportedError(
            "the batch of Qwen2.5-VL cannot be left free: patches of all images are packed",
            hint="--dynamic length",
        )
    config, vision, text = model.config, model.config.vision_config, model.config.text_config
    unit = vision.patch_size * vision.spatial_merge_size
    height, width = request.image_size or _default_size(processor, unit)
    if height % unit or width % unit:
        raise InputError(
            f"an image of {height}x{width} is no whole number of merged patches",
            expected=f"multiples of {unit} pixels",
            hint="--image-size",
        )
    grid = (1, height // vision.patch_size, width // vision.patch_size)
    visual = (height // unit) * (width // unit)
    length = prompt_length(request, visual, text.max_position_embeddings)
    features = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    reserved = (config.video_token_id, config.vision_start_token_id, config.vision_end_token_id)

    def sample(rows: int, seed: int) -> Inputs:
        ids = sample_prompt(
            1,
            rows,
            visual=visual,
            token=config.image_token_id,
            vocabulary=text.vocab_size,
            reserved=reserved,
            seed=seed,
        )
        pixels = noise(grid[1] * grid[2], features, seed=seed, dtype=model.dtype)
        return pixels, ids, positions(model, ids, grid)

    samples = [sample(rows, i) for i, (_, rows) in enumerate(request.sizes(length))]
    rows = Dim("length", min=visual + 2)
    shapes: Any = ({}, {1: rows}, {2: rows}) if request.free_length else None
    facts = {"image_size": f"{height}x{width}", "visual_tokens": visual, "prompt_length": length}
    module, plain = QwenLogits(model, grid).eval(), PlainQwen(model, grid).eval()
    return Capture(module, plain, samples[0], tuple(samples[1:]), shapes, facts)


def _default_size(processor: Mapping[str, Any], unit: int) -> tuple[int, int]:
    """Return a square near 448 that the processor's pixel limits allow, in whole merged patches."""
    limits = processor.get("size")
    limits = limits if isinstance(limits, Mapping) else {}
    most = processor.get("max_pixels") or limits.get("longest_edge") or DEFAULT_SIDE**2
    least = processor.get("min_pixels") or limits.get("shortest_edge") or 0
    side = max(unit, min(DEFAULT_SIDE, math.isqrt(most)) // unit * unit)
    while side * side < least:
        side += unit
    return side, side
