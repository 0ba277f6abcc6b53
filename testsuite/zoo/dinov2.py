"""DINOv2 with registers: class token, four registers, and a head that reads every patch."""

from __future__ import annotations

import torch
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.export import Dim
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

IMAGE_SIZE, PATCH, REGISTERS, HIDDEN, CLASSES = 48, 8, 4, 64, 10


class PooledDino(nn.Module):
    """``pixel_values [B,3,48,48] -> logits [B,10]``: mean patch, or class token and mean."""

    def __init__(self, *, attention: str, with_class: bool, layers: int = 4) -> None:
        super().__init__()
        self.backbone = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=HIDDEN,
                num_hidden_layers=layers,
                num_attention_heads=4,
                image_size=IMAGE_SIZE,
                patch_size=PATCH,
                mlp_ratio=2,
                num_register_tokens=REGISTERS,
                attn_implementation=attention,
            )
        )
        self.with_class = with_class
        self.head = nn.Linear(HIDDEN * (2 if with_class else 1), CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        tokens = self.backbone(pixel_values).last_hidden_state
        pooled = tokens[:, 1 + REGISTERS :].mean(1)
        if self.with_class:
            pooled = torch.cat([tokens[:, 0], pooled], -1)
        return self.head(pooled)


def build(
    batch: int = 1,
    *,
    dynamic: bool = False,
    with_class: bool = False,
    attention: str = "sdpa",
    seed: int = 0,
    layers: int = 4,
) -> Sample:
    """Export with a static ``batch``, or (``dynamic``) a free one traced at batch 2 at least."""
    batch = max(batch, 2) if dynamic else batch

    def model(implementation: str) -> nn.Module:
        built = PooledDino(attention=implementation, with_class=with_class, layers=layers)
        return randomise(built.eval(), seed)

    def pixels(items: int, offset: int) -> tuple[Tensor]:
        return (noise(items, 3, IMAGE_SIZE, IMAGE_SIZE, seed=seed + offset),)

    sizes = (batch, 1, 3) if dynamic else (batch,)
    others = tuple(pixels(items, 1 + i) for i, items in enumerate(sizes))
    shapes = ({0: Dim("batch", min=1, max=64)},) if dynamic else None
    exported = capture(model(attention), pixels(batch, 0), shapes)
    head = "classmean" if with_class else "mean"
    name = f"dinov2-{head}-{'dynamic' if dynamic else f'b{batch}'}-{attention}"
    return Sample(name, exported, pixels(batch, 0), model("eager").requires_grad_(False), others)
