"""In the style of CATANet: rows sorted by the centre they belong to, attention in groups, put back.

Liu et al., "CATANet: Efficient Content-Aware Token Aggregation for Lightweight Image
Super-Resolution", CVPR 2025.
"""

from __future__ import annotations

import torch
from testsuite.zoo.plain_layers import CLASSES, WIDTH, Block, Patches, classifier, take
from testsuite.zoo.sample import Sample
from torch import Tensor, nn

CENTRES, GROUP = 5, 12


class GroupedBlock(Block):
    """A layer whose attention stays inside groups of 12 rows of like content."""

    def __init__(self) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.zeros(CENTRES, WIDTH))

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        y = self.norm1(x)
        order = (y @ self.centres.T).argmax(-1).argsort(dim=1, stable=True)
        groups = take(y, order).unflatten(1, (-1, GROUP))
        rows = self.attend(groups.flatten(0, 1)).unflatten(0, groups.shape[:2]).flatten(1, 2)
        back = torch.zeros_like(rows).scatter(1, order[..., None].expand_as(rows), rows)
        x = x + back
        return x + self.mlp(self.norm2(x))


class Catanet(nn.Module):
    """``[B,3,48,48] -> [B,10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = Patches(), nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(GroupedBlock(), Block(), GroupedBlock(), Block())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images))).mean(1))


def build(seed: int = 0) -> Sample:
    """Export the classifier."""
    return classifier("catanet", Catanet, seed)
