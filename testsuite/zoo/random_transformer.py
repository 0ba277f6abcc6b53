"""Random transformer classifiers: a different graph for every seed."""

from __future__ import annotations

import dataclasses

import torch
from testsuite.zoo.random_attention import HEAD, Attention
from testsuite.zoo.random_spec import Spec, draw
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional

IMAGE_SIZE, PATCH, CLASSES = 20, 4, 7
PATCHES = (IMAGE_SIZE // PATCH) ** 2


class Mlp(nn.Module):
    """Two linear layers with GELU, or three with a SiLU gate; any leading dims."""

    def __init__(self, hidden: int, gated: bool) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        self.gate = nn.Linear(hidden, 2 * hidden) if gated else None

    def forward(self, x: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(functional.gelu(self.up(x)))
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Layer(nn.Module):
    """One pre- or post-norm layer."""

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        hidden = spec.heads * HEAD
        norm = nn.RMSNorm if spec.rms else nn.LayerNorm
        self.pre_norm = spec.pre_norm
        self.norm1, self.norm2 = norm(hidden), norm(hidden)
        self.attention = Attention(spec, PATCHES + spec.prefix)
        self.mlp = Mlp(hidden, spec.gated)

    def forward(self, x: Tensor) -> Tensor:
        if self.pre_norm:
            x = x + self.attention(self.norm1(x))
            return x + self.mlp(self.norm2(x))
        x = self.norm1(x + self.attention(x))
        return self.norm2(x + self.mlp(x))


class RandomTransformer(nn.Module):
    """``images [B,3,20,20]`` (``[3,20,20]`` if batch-free) -> ``[B,7]``, or ``[B,N,7]`` unpooled.

    Unpooled outputs keep the layout of the spec (``[N,B,7]``, ``[N,7]``).
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        hidden = spec.heads * HEAD
        self.spec = spec
        if spec.patchify == "conv":
            self.embed: nn.Module = nn.Conv2d(3, hidden, PATCH, stride=PATCH)
        else:
            self.embed = nn.Linear(3 * PATCH**2, hidden)
        if spec.prefix:
            self.prefix = nn.Parameter(torch.zeros(spec.prefix, hidden))
        if spec.positions == "learned":
            self.place = nn.Parameter(torch.zeros(PATCHES + spec.prefix, hidden))
        self.layers = nn.ModuleList([Layer(spec) for _ in range(spec.depth)])
        self.norm = nn.LayerNorm(hidden) if spec.pre_norm else nn.Identity()
        self.head = nn.Linear(hidden, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self._patches(images)
        if self.spec.prefix:
            first = self.prefix if self.spec.batch_free else self.prefix.expand(x.shape[0], -1, -1)
            x = torch.cat([first, x], dim=-2)
        if self.spec.positions == "learned":
            x = x + self.place
        if self.spec.layout == "NBH":
            x = x.transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(self._pool(self.norm(x)))

    def _patches(self, images: Tensor) -> Tensor:
        if self.spec.patchify == "conv":
            return self.embed(images).flatten(-2).transpose(-2, -1)
        side = IMAGE_SIZE // PATCH
        lead = images.shape[:-3]
        cells = images.reshape(*lead, 3, side, PATCH, side, PATCH)
        order = [*range(len(lead)), *(len(lead) + d for d in (1, 3, 0, 2, 4))]
        return self.embed(cells.permute(order).reshape(*lead, PATCHES, 3 * PATCH**2))

    def _pool(self, x: Tensor) -> Tensor:
        rows = 1 if self.spec.layout == "BNH" else 0
        if self.spec.pooling == "class":
            return x.select(rows, 0)
        if self.spec.pooling == "mean_patches":
            return x.narrow(rows, self.spec.prefix, PATCHES).mean(rows)
        return x.mean(rows) if self.spec.pooling == "mean" else x


def sample(seed: int) -> Sample:
    """Return the model of ``seed``: spec, weights and inputs all follow from it."""
    return sample_of(draw(seed), seed)


def sample_of(spec: Spec, seed: int) -> Sample:
    """Return a model of a chosen ``spec`` (a test may fix one choice, draw the rest)."""
    batch = 2 if spec.dynamic else 1

    def images(items: int, offset: int) -> tuple[Tensor]:
        lead = () if spec.batch_free else (items,)
        return (noise(*lead, 3, IMAGE_SIZE, IMAGE_SIZE, seed=1000 * seed + offset),)

    shapes = ({0: Dim("batch", min=1, max=64)},) if spec.dynamic else None
    others = tuple(images(items, 1 + i) for i, items in enumerate((1, 3) if spec.dynamic else (1,)))
    explicit = dataclasses.replace(spec, attention="matmul")
    exported = capture(randomise(RandomTransformer(spec), seed), images(batch, 0), shapes)
    twin = randomise(RandomTransformer(explicit).eval().requires_grad_(False), seed)
    return Sample(f"random-{seed}", exported, images(batch, 0), twin, others)
