"""Self-attention of a random transformer, in each of the forms a graph may show it in."""

from __future__ import annotations

import torch
from testsuite.zoo.random_spec import Spec
from torch import Tensor, nn
from torch.nn import functional

HEAD = 12


class Attention(nn.Module):
    """Attention over ``rows`` tokens; input and output in the layout of the spec.

    ``[B,N,H]`` and ``[N,B,H]`` become ``[B,h,N,d]`` inside, ``[N,H]`` becomes ``[h,N,d]``; the form
    ``bmm`` folds batch and heads into one dim.
    """

    def __init__(self, spec: Spec, rows: int) -> None:
        super().__init__()
        hidden, kv = spec.heads * HEAD, spec.kv_heads * HEAD
        self.spec, self.rows = spec, rows
        self.offsets: Tensor
        if spec.fused_qkv:
            self.qkv = nn.Linear(hidden, 3 * hidden)
        else:
            self.q, self.k, self.v = (nn.Linear(hidden, size) for size in (hidden, kv, kv))
        self.out = nn.Linear(hidden, hidden)
        if spec.relative_bias:
            self.bias_table = nn.Parameter(torch.zeros(2 * rows - 1, spec.heads))
            places = torch.arange(rows)
            self.register_buffer("offsets", places[:, None] - places[None, :] + rows - 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (self._split(part) for part in self._project(x))
        if self.spec.positions == "rotary":
            q, k = rotate(q), rotate(k)
        groups = self.spec.heads // self.spec.kv_heads
        if groups > 1:
            k, v = (repeat_heads(part, groups) for part in (k, v))
        bias = None
        if self.spec.relative_bias:
            bias = self.bias_table[self.offsets.flatten()].view(self.rows, self.rows, -1)
            bias = bias.permute(2, 0, 1)
        mixed = self._attend(q, k, v, bias).transpose(-3, -2).flatten(-2)
        return self.out(mixed.transpose(0, 1) if self.spec.layout == "NBH" else mixed)

    def _project(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.spec.fused_qkv:
            return self.qkv(x).chunk(3, dim=-1)
        return self.q(x), self.k(x), self.v(x)

    def _split(self, part: Tensor) -> Tensor:
        """``[..., H]`` in the layout -> ``[..., h, N, d]``."""
        part = part.transpose(0, 1) if self.spec.layout == "NBH" else part
        return part.unflatten(-1, (-1, HEAD)).transpose(-3, -2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        if self.spec.attention == "sdpa":
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        shape, scale = q.shape, HEAD**-0.5
        if self.spec.attention == "bmm" and q.ndim == 4:
            q, k, v = (part.reshape(-1, self.rows, HEAD) for part in (q, k, v))
        scores = multiply(q * scale, k) if self.spec.scale_first else multiply(q, k) / HEAD**0.5
        if bias is not None:
            scores = (scores.view(*shape[:-1], self.rows) + bias).view(scores.shape)
        return torch.matmul(scores.softmax(-1), v).reshape(shape)


def multiply(q: Tensor, k: Tensor) -> Tensor:
    """Scores ``[..., N, N]``, as ``bmm`` when the operands have rank 3."""
    keys = k.transpose(-2, -1)
    return torch.bmm(q, keys) if q.ndim == 3 else torch.matmul(q, keys)


def repeat_heads(part: Tensor, groups: int) -> Tensor:
    """``[..., h, N, d] -> [..., h * groups, N, d]``, each head repeated in place."""
    expanded = part.unsqueeze(-3).expand(*part.shape[:-2], groups, *part.shape[-2:])
    return expanded.flatten(-4, -3)


def rotate(part: Tensor) -> Tensor:
    """Rotary positions along N of ``[..., N, d]``, tables built in the graph."""
    places = torch.arange(part.shape[-2], dtype=part.dtype)
    rates = 100.0 ** (-torch.arange(0, HEAD, 2, dtype=part.dtype) / HEAD)
    angles = torch.outer(places, rates).repeat(1, 2)
    left, right = part.chunk(2, dim=-1)
    return part * angles.cos() + torch.cat([-right, left], -1) * angles.sin()
