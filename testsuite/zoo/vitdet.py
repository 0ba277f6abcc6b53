"""ViTDet: rows on a plane between the layers, windows in some, positions relative in the plane."""

from __future__ import annotations

from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.tiny import PATCH, tiny
from testsuite.zoo.weights import noise
from torch import Tensor, nn
from transformers import VitDetConfig, VitDetModel

SIDE = 64
CONFIG = dict(
    hidden_size=40,
    num_hidden_layers=4,
    num_attention_heads=4,
    image_size=SIDE,
    pretrain_image_size=SIDE,
    patch_size=PATCH,
    window_block_indices=[0, 2],
    window_size=4,
)


class FeatureMap(nn.Module):
    """``[1, 3, 64, 64] -> [1, 40, 8, 8]``."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = tiny(VitDetModel, VitDetConfig(**CONFIG), "eager", seed)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels).last_hidden_state


def build(seed: int = 0) -> Sample:
    """Export the feature map of one image."""
    module = FeatureMap(seed)
    given, *others = ((noise(1, 3, SIDE, SIDE, seed=seed + more),) for more in (1, 2))
    return Sample("vitdet", capture(module, given), given, module, tuple(others))
