"""A tower over a 4x8 grid whose rows are joined by groups before they are merged into words."""

from __future__ import annotations

import torch
from testsuite.zoo.sample import Sample, capture
from torch import Tensor, nn
from torch.export import Dim
from torch.nn.functional import avg_pool2d, scaled_dot_product_attention, unfold

HIGH, WIDE, WIDTH, IMAGE = 4, 8, 8, 9


class Attend(nn.Module):
    """One residual layer of self-attention, two heads; in windows of 2x4 where ``windows``."""

    def __init__(self, windows: bool = False) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.windows = windows

    def forward(self, x: Tensor, shift: int = 0) -> Tensor:
        y = self.norm(x)
        if self.windows:
            y = y.view(-1, HIGH, WIDE, WIDTH)
            y = y.roll((-shift, -shift), (1, 2)) if shift else y
            y = y.view(-1, 2, 2, 2, 4, WIDTH).permute(0, 1, 3, 2, 4, 5).reshape(-1, 8, WIDTH)
        q, k, v = self.qkv(y).unflatten(-1, (3, 2, WIDTH // 2)).permute(2, 0, 3, 1, 4).unbind(0)
        y = scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        if self.windows:
            y = y.view(-1, 2, 2, 2, 4, WIDTH).permute(0, 1, 3, 2, 4, 5)
            y = y.reshape(-1, HIGH, WIDE, WIDTH)
            y = (y.roll((shift, shift), (1, 2)) if shift else y).reshape(-1, HIGH * WIDE, WIDTH)
        return x + y


class Join(nn.Module):
    """``[B, 32, C]`` to ``[B, 8, C]``, one way or another."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.mix = nn.Linear(WIDTH if how in ("pool", "convolution") else 4 * WIDTH, WIDTH)
        self.kernel = nn.Conv2d(WIDTH, WIDTH, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        plane = x.view(-1, HIGH, WIDE, WIDTH)
        if self.how == "in order":
            return self.mix(x.reshape(-1, 8, 4 * WIDTH))
        if self.how == "shuffle":
            y = plane.view(-1, 2, 2, 4, 2, WIDTH).permute(0, 1, 3, 2, 4, 5)
            return self.mix(y.reshape(-1, 8, 4 * WIDTH))
        if self.how == "slices":
            parts = [plane[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
            return self.mix(torch.cat(parts, -1).flatten(1, 2))
        image = plane.permute(0, 3, 1, 2)
        if self.how == "columns":
            return self.mix(unfold(image, 2, stride=2).transpose(1, 2))
        image = avg_pool2d(image, 2) if self.how == "pool" else self.kernel(image)
        return self.mix(image.flatten(2).transpose(1, 2))


JOINS = ("in order", "shuffle", "slices", "columns", "pool", "convolution")


class GroupedVlm(nn.Module):
    def __init__(self, how: str, windows: tuple[bool, ...], shift: int) -> None:
        super().__init__()
        self.patches, self.words = nn.Linear(3, WIDTH), nn.Embedding(IMAGE + 1, WIDTH)
        self.tower = nn.ModuleList([Attend(w) for w in windows])
        self.join, self.text, self.head = Join(how), Attend(), nn.Linear(WIDTH, 5)
        self.shift = shift

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        x = self.patches(pixels)
        for layer in self.tower:
            x = layer(x, self.shift)
        found = self.words(ids)
        there = (ids == IMAGE).unsqueeze(-1).expand_as(found)
        return self.head(self.text(found.masked_scatter(there, self.join(x))))


class Classifier(nn.Module):
    """A tower in shifted windows, pooled over all its rows, or given out by groups."""

    def __init__(self, join: bool) -> None:
        super().__init__()
        self.patches, self.head = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 5)
        self.tower = nn.ModuleList([Attend(True), Attend(True)])
        self.pool = Join("pool") if join else nn.AdaptiveAvgPool1d(1)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.patches(pixels)
        for shift, layer in enumerate(self.tower):
            x = layer(x, shift)
        if isinstance(self.pool, Join):
            return self.head(self.pool(x))
        return self.head(self.pool(x.transpose(1, 2)).flatten(1))


def classifier(join: bool) -> Sample:
    """Return a tower without text, two items."""
    torch.manual_seed(0)
    module, inputs = Classifier(join).eval(), (torch.randn(2, HIGH * WIDE, 3),)
    return Sample("windows", capture(module, inputs), inputs, module)


def build(
    how: str, windows: tuple[bool, ...] = (False, False), shift: int = 0, dynamic: bool = False
) -> Sample:
    """Return the model with two items, their images at different places among the words.

    ``dynamic``: any batch, any prompt length; ``other_inputs`` has three items of 14 words.
    """
    torch.manual_seed(0)
    module = GroupedVlm(how, windows, shift).eval()
    inputs, more = _inputs(2, 12), (_inputs(3, 14),)
    if dynamic:
        batch, length = Dim("batch", min=2, max=16), Dim("length", min=9, max=64)
        shapes = ({0: batch, 1: length}, {0: batch})
        return Sample(f"grouped_{how}", capture(module, inputs, shapes), inputs, module, more)
    return Sample(f"grouped_{how}", capture(module, inputs), inputs, module)


def _inputs(items: int, length: int) -> tuple[Tensor, Tensor]:
    ids = torch.randint(0, IMAGE, (items, length))
    for item in range(items):
        ids[item, 1 + item : 9 + item] = IMAGE
    return ids, torch.randn(items, HIGH * WIDE, 3)
