"""In the style of ToC3D: salient rows take the slow path, the others follow one representative.

Zhang et al., "Make Your ViT-based Multi-view 3D Detectors Faster via Token Compression", ECCV 2024.
"""

from __future__ import annotations

import torch
from testsuite.zoo.plain_layers import CLASSES, WIDTH, Block, Patches, classifier, take
from testsuite.zoo.sample import Sample
from torch import Tensor, nn

SALIENT = 14


class TwoPaths(Block):
    """14 rows and one weighted mean of the other 22 are attended; the mean's change is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.salience = nn.Linear(WIDTH, 1)

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        scores = self.salience(x).squeeze(-1)
        order = scores.argsort(dim=1, descending=True, stable=True)
        slow, fast = order[:, :SALIENT], order[:, SALIENT:]
        rows, rest = take(x, slow), take(x, fast)
        weights = scores.gather(1, fast).softmax(-1)
        bridge = weights[:, None] @ rest
        done = super().forward(torch.cat([rows, bridge], 1))
        rest = rest + done[:, SALIENT:] - bridge
        moved = torch.cat([done[:, :SALIENT], rest], 1)
        return torch.zeros_like(x).scatter(1, order[..., None].expand_as(x), moved)


class Toc3d(nn.Module):
    """``[B,3,48,48] -> [B,10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = Patches(), nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(Block(), TwoPaths(), TwoPaths(), Block())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images))).mean(1))


def build(seed: int = 0) -> Sample:
    """Export the classifier."""
    return classifier("toc3d", Toc3d, seed)
