"""In the style of TokenFLEX: adaptive pooling between tower and decoder, one number sets the count.

Hu et al., "TokenFLEX: Unified VLM Training for Flexible Visual Tokens Inference", 2025.
"""

from __future__ import annotations

import torch
from testsuite.zoo.plain_layers import GRID, SIDE, WIDTH, Block, Patches
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.nn import functional

from tokopt.cli.capture_prompt import sample_prompt

POOLED, TEXT_WIDTH, VOCABULARY, IMAGE, LENGTH = 4, 52, 90, 89, 25


class TokenFlex(nn.Module):
    """``(images [B,3,48,48], ids [B,S]) -> logits [B,S,90]`` with 4x4 visual rows of 6x6."""

    def __init__(self, side: int = POOLED) -> None:
        super().__init__()
        self.side = side
        self.patches, self.tower = Patches(), nn.Sequential(Block(), Block(), Block())
        self.gate, self.value = nn.Linear(WIDTH, TEXT_WIDTH), nn.Linear(WIDTH, TEXT_WIDTH)
        self.words = nn.Embedding(VOCABULARY, TEXT_WIDTH)
        self.places = nn.Embedding(64, TEXT_WIDTH)
        self.layers = nn.ModuleList(Block(TEXT_WIDTH) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(TEXT_WIDTH), nn.Linear(TEXT_WIDTH, VOCABULARY)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        plane = self.tower(self.patches(images)).transpose(1, 2).unflatten(2, (GRID, GRID))
        rows = functional.adaptive_avg_pool2d(plane, self.side).flatten(2).transpose(1, 2)
        rows = functional.silu(self.gate(rows)) * self.value(rows)
        length = ids.shape[1]
        x = self.words(ids).masked_scatter((ids == IMAGE)[..., None], rows)
        x = x + self.places(torch.arange(length))
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for layer in self.layers:
            x = layer(x, mask=causal)
        return self.head(self.norm(x))


def build(seed: int = 0) -> Sample:
    """Export logits for one image in a prompt."""
    module = randomise(TokenFlex().eval(), seed)

    def inputs(offset: int) -> tuple[Tensor, Tensor]:
        ids = sample_prompt(
            1, LENGTH, visual=POOLED**2, token=IMAGE, vocabulary=IMAGE, seed=seed + offset
        )
        return noise(1, 3, SIDE, SIDE, seed=seed + offset), ids

    exported = capture(module, inputs(0))
    return Sample("tokenflex", exported, inputs(0), module, (inputs(1), inputs(2)))
