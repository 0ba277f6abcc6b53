"""A hand-written vision-language model in parts: tower, prefill from features, one decode step.

Nobody's library: a pre-norm tower without a class row, a linear projector, ``masked_scatter`` into
the embeddings, a decoder with learned positions and a growing cache.  Served whole or in parts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model; ``image // patch`` squared are its visual tokens."""

    tower: int = 32
    width: int = 48
    heads: int = 4
    tower_layers: int = 3
    layers: int = 3
    vocabulary: int = 60
    longest: int = 128
    image: int = 24
    patch: int = 4

    @property
    def visual(self) -> int:
        """Number of visual tokens of an image."""
        return (self.image // self.patch) ** 2

    @property
    def image_token(self) -> int:
        """The id that stands for a visual token: the last one."""
        return self.vocabulary - 1


class Attention(nn.Module):
    """Attention with separate projections on ``[B,N,W]``; returns keys and values too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.heads = heads

    def forward(
        self, x: Tensor, mask: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        def split(rows: Tensor) -> Tensor:
            return rows.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        keys = k if past is None else torch.cat([past[0], k], dim=2)
        values = v if past is None else torch.cat([past[1], v], dim=2)
        rows = scaled_dot_product_attention(q, keys, values, attn_mask=mask)
        return self.out(rows.transpose(1, 2).flatten(2)), k, v


class Layer(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        y, k, v = self.attention(self.norm1(x), mask, past)
        x = x + y
        return x + self.down(gelu(self.up(self.norm2(x)))), k, v


class Vision(nn.Module):
    """``pixels [B,3,S,S] -> features [B,N,W]``."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.patchify = nn.Conv2d(3, sizes.tower, sizes.patch, stride=sizes.patch)
        self.place = nn.Parameter(torch.zeros(1, sizes.visual, sizes.tower))
        self.layers = nn.ModuleList(
            [Layer(sizes.tower, sizes.heads) for _ in range(sizes.tower_layers)]
        )
        self.norm = nn.LayerNorm(sizes.tower)
        self.project = nn.Linear(sizes.tower, sizes.width)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patchify(pixels).flatten(2).transpose(1, 2) + self.place
        for layer in self.layers:
            x, _, _ = layer(x)
        return self.project(self.norm(x))


class Language(nn.Module):
    """``ids [B,S], features [B,N,W] -> logits [B,S,V]`` and each layer's keys and values."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.image_token = sizes.image_token
        self.embed = nn.Embedding(sizes.vocabulary, sizes.width)
        self.place = nn.Embedding(sizes.longest, sizes.width)
        self.layers = nn.ModuleList([Layer(sizes.width, sizes.heads) for _ in range(sizes.layers)])
        self.norm = nn.LayerNorm(sizes.width)
        self.head = nn.Linear(sizes.width, sizes.vocabulary, bias=False)

    def forward(self, input_ids: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        visual = (input_ids == self.image_token).unsqueeze(-1)
        embeds = self.embed(input_ids)
        x = embeds.masked_scatter(visual.expand_as(embeds), features.to(embeds.dtype))
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        mask = positions[None, :] <= positions[:, None]
        x, cache = x + self.place(positions), []
        for layer in self.layers:
            x, k, v = layer(x, mask[None, None])
            cache += [k, v]
        return (self.head(self.norm(x)), *cache)


class Decode(nn.Module):
    """``ids [B,1], positions [B,1], cache -> logits [B,1,V]`` and the new rows of the cache."""

    def __init__(self, language: Language) -> None:
        super().__init__()
        self.language = language

    def forward(self, input_ids: Tensor, positions: Tensor, cache: list[Tensor]) -> tuple[Tensor]:
        language, new = self.language, []
        x = language.embed(input_ids) + language.place(positions)
        for index, layer in enumerate(language.layers):
            x, k, v = layer(x, past=(cache[2 * index], cache[2 * index + 1]))
            new += [k, v]
        return (language.head(language.norm(x)), *new)


class HandVlm(nn.Module):
    """``ids [B,S], pixels [B,3,S,S] -> logits [B,S,V]``: the parts behind one another."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.vision, self.language = Vision(sizes), Language(sizes)

    def forward(self, input_ids: Tensor, pixels: Tensor) -> Tensor:
        return self.language(input_ids, self.vision(pixels))[0]
