"""Layers that hand-written zoo models share, in plain torch: what papers' code starts from."""

from __future__ import annotations

from collections.abc import Callable

import torch
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.nn import functional

SIDE, PATCH, WIDTH, HEADS, CLASSES = 48, 8, 44, 4, 10
GRID = SIDE // PATCH


class Attend(nn.Module):
    """Attention of ``x [B,N,H]`` to ``context [B,M,H]`` (itself by default), fused."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        q, (k, v) = self.q(x), self.kv(x if context is None else context).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        rows = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(rows.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm layer; ``context`` and ``mask`` are for the attention."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = Attend(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = x + self.attend(self.norm1(x), context, mask)
        return x + self.mlp(self.norm2(x))


class Patches(nn.Module):
    """``[B,3,48,48] -> [B,36,H]`` with learned positions."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.project = nn.Conv2d(3, width, PATCH, stride=PATCH)
        self.place = nn.Parameter(torch.zeros(1, GRID**2, width))

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images).flatten(2).transpose(1, 2) + self.place


def take(x: Tensor, rows: Tensor) -> Tensor:
    """Return rows ``[B,K]`` of ``x [B,N,H]``."""
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[-1]))


def classifier(name: str, make: Callable[[], nn.Module], seed: int) -> Sample:
    """Export an image classifier ``[1,3,48,48] -> [1,10]``."""
    module = randomise(make().eval(), seed)
    traced, *others = ((noise(1, 3, SIDE, SIDE, seed=seed + i),) for i in range(3))
    return Sample(name, capture(module, traced), traced, module, tuple(others))
