"""A hand-written ViT, nobody's library: fused qkv, attention spelled out, head on the class row."""

from __future__ import annotations

import torch
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.export import Dim

IMAGE_SIZE, PATCH, HIDDEN, HEADS, CLASSES = 48, 8, 48, 4, 10


class Block(nn.Module):
    """Pre-norm attention and MLP on ``[B,N,48]``."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN), nn.LayerNorm(HIDDEN)
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.mlp = nn.Sequential(
            nn.Linear(HIDDEN, 2 * HIDDEN), nn.GELU(), nn.Linear(2 * HIDDEN, HIDDEN)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, _ = x.shape
        heads = self.qkv(self.norm1(x)).reshape(batch, rows, 3, HEADS, HIDDEN // HEADS)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q @ k.transpose(-2, -1) * (HIDDEN // HEADS) ** -0.5).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).reshape(batch, rows, HIDDEN))
        return x + self.mlp(self.norm2(x))


class HandVit(nn.Module):
    """``images [B,3,48,48] -> logits [B,10]``, 36 patches and a class row."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(3, HIDDEN, PATCH, stride=PATCH)
        self.first_row = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.place = nn.Parameter(torch.zeros(1, 1 + (IMAGE_SIZE // PATCH) ** 2, HIDDEN))
        self.blocks = nn.ModuleList([Block() for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.patchify(images).flatten(2).transpose(1, 2)
        first = self.first_row.expand(images.shape[0], -1, -1)
        x = torch.cat([first, patches], dim=1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


def build(batch: int = 1, *, dynamic: bool = False, depth: int = 4, seed: int = 0) -> Sample:
    """Export with a static ``batch``, or (``dynamic``) a free one traced at batch 2 at least."""
    batch = max(batch, 2) if dynamic else batch
    module = randomise(HandVit(depth).eval(), seed)

    def images(items: int, offset: int) -> tuple[Tensor]:
        return (noise(items, 3, IMAGE_SIZE, IMAGE_SIZE, seed=seed + offset),)

    sizes = (batch, 1, 3) if dynamic else (batch,)
    others = tuple(images(items, 1 + i) for i, items in enumerate(sizes))
    shapes = ({0: Dim("batch", min=1, max=64)},) if dynamic else None
    exported = capture(module, images(batch, 0), shapes)
    name = f"handvit-{'dynamic' if dynamic else f'b{batch}'}"
    return Sample(name, exported, images(batch, 0), module, others)
