"""A transformer block that can run on any rows of its sequence: the hand-written reference.

Exported it runs at full length, in one of the layouts graphs come in.  As the reference it is told
which rows there are (``places``) and reads positions, masks and biases at those: rows are really
gone, nothing is masked.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

HEAD = 6


@dataclass(frozen=True)
class Form:
    """How a block is written down; it computes the same in every ``layout`` and ``attention``."""

    layout: str = "BNH"  # BNH, NBH, NH
    attention: str = "fused"  # fused, spelled, bmm, einsum
    heads: int = 2
    kv_heads: int = 2
    causal: str = "no"  # no, flag (fused only), mask, finite (a finite number instead of -inf)
    bias: bool = False
    rotary: bool = False


@dataclass(frozen=True)
class Seen:
    """What entered a block, ``[B, N, C]``, and its q, k, v ``[B, h, N, d]`` and probabilities."""

    entered: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor


class Block(nn.Module):
    """Pre-norm attention and MLP over at most ``rows`` rows."""

    def __init__(self, form: Form, rows: int) -> None:
        super().__init__()
        hidden, kv = form.heads * HEAD, form.kv_heads * HEAD
        self.form, self.rows = form, rows
        self.norm1, self.norm2 = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.q, self.k, self.v = (
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, kv),
            nn.Linear(hidden, kv),
        )
        self.out = nn.Linear(hidden, hidden)
        self.mlp = nn.Sequential(
            nn.Linear(hidden, 2 * hidden), nn.GELU(), nn.Linear(2 * hidden, hidden)
        )
        self.bias = nn.Parameter(torch.randn(form.heads, rows, rows)) if form.bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Run at full length, ``x`` in the form's layout."""
        turn = {"BNH": lambda t: t, "NBH": lambda t: t.transpose(0, 1), "NH": lambda t: t}
        turned = turn[self.form.layout]
        places = torch.arange(x.shape[0 if self.form.layout != "BNH" else 1])
        q, k, v = (self._split(turned(part)) for part in self._project(self.norm1(x)))
        mixed = self._attend(*self._placed(q, k, places), v)
        x = x + turned(self.out(mixed.transpose(-3, -2).flatten(-2)))
        return x + self.mlp(self.norm2(x))

    def shortened(self, x: Tensor, places: Tensor) -> tuple[Tensor, Seen]:
        """Run on rows ``places [B, N]`` alone, ``x [B, N, H]``; spelled out in fp32."""
        entered = x
        q, k, v = (self._split(part) for part in self._project(self.norm1(x)))
        q, k = self._placed(q, k, places[:, None])
        scores = q @ k.repeat_interleave(q.shape[1] // k.shape[1], 1).mT * HEAD**-0.5
        across, down = places[:, None, :, None], places[:, None, None, :]
        if self.bias is not None:
            scores = scores + self.bias[torch.arange(q.shape[1])[:, None, None], across, down]
        if self.form.causal != "no":
            scores = scores.masked_fill(down > across, -torch.inf)
        weights = scores.softmax(-1)
        mixed = weights @ v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x)), Seen(entered, q, k, v, weights)

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.q(x), self.k(x), self.v(x)

    def _split(self, part: Tensor) -> Tensor:
        return part.unflatten(-1, (-1, HEAD)).transpose(-3, -2)

    def _placed(self, q: Tensor, k: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        if not self.form.rotary:
            return q, k
        angles = places[..., None] * torch.tensor([1.0, 0.1, 0.01]).repeat(2)
        return tuple(  # type: ignore[return-value]
            part * angles.cos() + torch.cat([-part[..., 3:], part[..., :3]], -1) * angles.sin()
            for part in (q, k)
        )

    def _mask(self) -> Tensor | None:
        below = torch.ones(self.rows, self.rows, dtype=torch.bool).tril()
        if self.form.causal == "mask" and self.bias is None:
            return below
        bias = self.bias if self.bias is not None else torch.zeros(1, self.rows, self.rows)
        if self.form.causal in ("mask", "finite"):
            lowest = -torch.inf if self.form.causal == "mask" else torch.finfo(torch.float32).min
            return bias.masked_fill(~below, lowest)
        return self.bias

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mask, groups = self._mask(), self.form.heads // self.form.kv_heads
        if self.form.attention == "fused":
            return functional.scaled_dot_product_attention(
                q, k, v, mask, is_causal=self.form.causal == "flag", enable_gqa=groups > 1
            )
        k, v = (p.repeat_interleave(groups, -3) if groups > 1 else p for p in (k, v))
        if self.form.attention == "einsum":
            weights = self._weights(torch.einsum("bhqd,bhkd->bhqk", q, k), mask)
            return torch.einsum("bhqk,bhkd->bhqd", weights, v)
        shape = q.shape
        if self.form.attention == "bmm" and q.ndim == 4:
            q, k, v = (p.reshape(-1, *shape[2:]) for p in (q, k, v))
            scores = torch.bmm(q, k.mT).view(*shape[:3], -1)
            weights = self._weights(scores, mask).view(-1, *scores.shape[2:])
            return torch.bmm(weights, v).view(shape)
        return self._weights(q @ k.mT, mask) @ v

    def _weights(self, scores: Tensor, mask: Tensor | None) -> Tensor:
        scores = scores * HEAD**-0.5
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -torch.inf)
        elif mask is not None:
            scores = scores + mask
        return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
