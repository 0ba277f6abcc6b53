"""A ViT as timm writes it: fused qkv unbound, norm of q and k, layer scale, registers, pooling."""

from __future__ import annotations

import torch
from testsuite.zoo.plain_layers import CLASSES, GRID, HEADS, PATCH, WIDTH, classifier
from testsuite.zoo.sample import Sample
from torch import Tensor, nn
from torch.nn import functional

PREFIX = 3


class LayerScale(nn.Module):
    """One factor per feature."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TimmAttention(nn.Module):
    """``[B,N,H] -> [B,N,H]``."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_norm, self.k_norm = nn.LayerNorm(WIDTH // HEADS), nn.LayerNorm(WIDTH // HEADS)

    def forward(self, x: Tensor) -> Tensor:
        batch, rows, width = x.shape
        qkv = self.qkv(x).reshape(batch, rows, 3, HEADS, width // HEADS).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        x = functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
        return self.proj(x.transpose(1, 2).reshape(batch, rows, width))


class TimmBlock(nn.Module):
    """A pre-norm layer with layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.ls1, self.ls2 = TimmAttention(), LayerScale(), LayerScale()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 96), nn.GELU(), nn.Linear(96, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class VisionTransformer(nn.Module):
    """``[B,3,48,48] -> [B,10]``: class row and two registers in front, patches pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.reg_token = nn.Parameter(torch.zeros(1, PREFIX - 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, GRID**2, WIDTH))
        self.blocks = nn.Sequential(*(TimmBlock() for _ in range(4)))
        self.fc_norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        x = self.proj(images).flatten(2).transpose(1, 2) + self.pos_embed
        prefix = [t.expand(x.shape[0], -1, -1) for t in (self.cls_token, self.reg_token)]
        x = self.blocks(torch.cat([*prefix, x], dim=1))
        return self.head(self.fc_norm(x[:, PREFIX:].mean(dim=1)))


def build(seed: int = 0) -> Sample:
    """Export the classifier."""
    return classifier("timm_vit", VisionTransformer, seed)
