"""A ViT whose stream is flattened to ``[B*N, C]``, with a class row: rows and batch share a dim."""

import torch
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, PATCHES = 32, 2, 12


class FlatBlock(nn.Module):
    """Attention per item on a stream of all items' rows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(HIDDEN), nn.Linear(HIDDEN, 3 * HIDDEN)
        self.out = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor, batch: int) -> Tensor:
        split = self.qkv(self.norm(x)).view(batch, PATCHES + 1, 3, HEADS, HIDDEN // HEADS)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed.transpose(1, 2).reshape(batch * (PATCHES + 1), HIDDEN))


class FlatVit(nn.Module):
    """``patches [B, 12, 32] -> class rows [B, 32]``."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(HIDDEN, HIDDEN)
        self.first = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.blocks = nn.ModuleList([FlatBlock(), FlatBlock()])

    def forward(self, patches: Tensor) -> Tensor:
        batch = patches.shape[0]
        rows = torch.cat([self.first.expand(batch, -1, -1), self.embed(patches)], 1)
        x = rows.reshape(batch * (PATCHES + 1), HIDDEN)
        for block in self.blocks:
            x = block(x, batch)
        return x.view(batch, PATCHES + 1, HIDDEN)[:, 0]


def build(batch: int = 2) -> Sample:
    """Export with a static batch."""
    module = randomise(FlatVit().eval(), 0)
    inputs = (noise(batch, PATCHES, HIDDEN, seed=0),)
    return Sample("flat", capture(module, inputs), inputs, module)
