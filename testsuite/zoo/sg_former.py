"""In the style of SG-Former: keys are sorted by significance, the insignificant pooled.

Ren et al., "SG-Former: Self-guided Transformer with Evolving Token Reallocation", ICCV 2023.
"""

from __future__ import annotations

import torch
from testsuite.zoo.plain_layers import CLASSES, WIDTH, Block, Patches, classifier, take
from testsuite.zoo.sample import Sample
from torch import Tensor, nn

GROUPS = ((9, 1), (12, 3), (15, 5))
"""Rows of each group, most significant first, and how many are pooled into one key."""


class GuidedBlock(Block):
    """A layer that attends to 9 + 4 + 3 keys made of 36 sorted rows."""

    def __init__(self) -> None:
        super().__init__()
        self.significance = nn.Linear(WIDTH, 1)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        y = self.norm1(x)
        order = self.significance(y).squeeze(-1).argsort(dim=1, descending=True, stable=True)
        groups = take(y, order).split([rows for rows, _ in GROUPS], 1)
        pooled = [
            group.unflatten(1, (-1, rate)).mean(2)
            for group, (_, rate) in zip(groups, GROUPS, strict=True)
        ]
        x = x + self.attend(y, torch.cat(pooled, 1))
        return x + self.mlp(self.norm2(x))


class SgFormer(nn.Module):
    """``[B,3,48,48] -> [B,10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = Patches(), nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(Block(), GuidedBlock(), GuidedBlock())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images))).mean(1))


def build(seed: int = 0) -> Sample:
    """Export the classifier."""
    return classifier("sg_former", SgFormer, seed)
