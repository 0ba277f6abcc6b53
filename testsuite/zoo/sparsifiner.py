"""In the style of Sparsifiner: each query attends to the keys a cheap predictor ranks highest.

Wei et al., "Sparsifiner: Learning Sparse Instance-Dependent Attention for Efficient Vision
Transformers", CVPR 2023.
"""

from __future__ import annotations

from testsuite.zoo.plain_layers import CLASSES, WIDTH, Attend, Block, Patches, classifier
from testsuite.zoo.sample import Sample
from torch import Tensor, nn

RANK, BUDGET = 6, 13


class SparseBlock(Block):
    """A layer whose attention mask is the top 13 keys by a low-rank product."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(WIDTH, RANK), nn.Linear(WIDTH, RANK)
        self.attend = Attend()

    def forward(
        self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        x = x + self.attend(y := self.norm1(x), mask=self.connected(y)[:, None])
        return x + self.mlp(self.norm2(x))

    def connected(self, x: Tensor) -> Tensor:
        """Return which keys each query sees, ``[B,N,N]`` bool."""
        scores = self.left(x) @ self.right(x).transpose(-2, -1)
        best = scores.topk(BUDGET, -1).indices
        return scores.new_zeros(scores.shape).scatter(-1, best, 1.0).bool()


class Sparsifiner(nn.Module):
    """``[B,3,48,48] -> [B,10]``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = Patches(), nn.LayerNorm(WIDTH)
        self.blocks = nn.Sequential(Block(), SparseBlock(), SparseBlock())
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(images))).mean(1))


def build(seed: int = 0) -> Sample:
    """Export the classifier."""
    return classifier("sparsifiner", Sparsifiner, seed)
