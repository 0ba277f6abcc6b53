"""In the style of STViT: a few pooled semantic tokens do the work and are read back.

Chang et al., "Making Vision Transformers Efficient from A Token Sparsification View", CVPR 2023.
"""

from __future__ import annotations

from testsuite.zoo.plain_layers import CLASSES, GRID, WIDTH, Block, Patches, classifier
from testsuite.zoo.sample import Sample
from torch import Tensor, nn
from torch.nn import functional

SEMANTIC = 2


class Stvit(nn.Module):
    """``[B,3,48,48] -> [B,10]``: 36 rows, 2x2 semantic tokens, 36 recovered rows."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = Patches(), nn.LayerNorm(WIDTH)
        self.first, self.last = nn.Sequential(Block(), Block()), Block()
        self.gather, self.recover = Block(), Block()
        self.middle = nn.Sequential(Block(), Block())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.patches(images))
        plane = x.transpose(1, 2).unflatten(2, (GRID, GRID))
        centres = functional.adaptive_avg_pool2d(plane, SEMANTIC).flatten(2).transpose(1, 2)
        semantic = self.middle(self.gather(centres, x))
        x = self.last(self.recover(x, semantic))
        return self.head(self.norm(x).mean(1))


def build(seed: int = 0) -> Sample:
    """Export the classifier."""
    return classifier("stvit", Stvit, seed)
