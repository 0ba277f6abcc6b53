"""How Qwen2.5-VL is captured: the grid is a compile-time constant, positions are an input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tokopt.cli.static_tensor import FoldFactories, StaticTensor

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
