"""A tiny vision transformer with a twin that removes rows by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from testsuite.passes.oracle.tiny_block import HEAD, Block, Form, Seen
from torch import Tensor, nn

CHANNELS = 5


@dataclass(frozen=True)
class State:
    """What the reference knows when it reaches a layer: rows, their places, layers so far."""

    hidden: Tensor
    places: Tensor
    layers: Sequence[Seen]


Remove = Callable[[int, State], Tensor | None]
"""``depth, state -> index [B, K]`` of the rows that stay, or None."""


def run_layers(blocks: nn.ModuleList, x: Tensor, places: Tensor, remove: Remove) -> State:
    """Run blocks on rows that are removed before a layer (and behind the last) where asked."""
    seen: list[Seen] = []
    for depth in range(len(blocks) + 1):
        index = remove(depth, State(x, places, tuple(seen)))
        if index is not None:
            x, places = take(x, index), places.gather(1, index)
            seen = [at(layer, index) for layer in seen]
        if depth < len(blocks):
            x, layer = blocks[depth].shortened(x, places)
            seen.append(layer)
    return State(x, places, tuple(seen))


def take(x: Tensor, index: Tensor) -> Tensor:
    """Return rows ``index [B, K]`` of ``x [B, N, C]``."""
    return torch.stack([item[rows] for item, rows in zip(x, index, strict=True)])


def at(layer: Seen, index: Tensor) -> Seen:
    """Return what a layer saw, at the rows that are left."""

    def rows(part: Tensor) -> Tensor:
        return torch.stack([p[:, i] for p, i in zip(part, index, strict=True)])

    weights = torch.stack([w[:, i][:, :, i] for w, i in zip(layer.weights, index, strict=True)])
    return Seen(
        take(layer.entered, index), rows(layer.query), rows(layer.key), rows(layer.value), weights
    )


class TinyVit(nn.Module):
    """``patches [B, P, 5] -> (per row [B, N, 3], mean of the patches, first row)``.

    The head reads the last layer and what entered layer 1, side by side, as some models do.  In
    layout NBH the first output is ``[N, B, 3]``; in NH there is no batch anywhere.
    """

    def __init__(self, form: Form, *, patches: int = 8, prefix: int = 1, depth: int = 3) -> None:
        super().__init__()
        hidden = form.heads * HEAD
        self.form, self.front = form, prefix
        self.embed = nn.Linear(CHANNELS, hidden)
        self.prefix = nn.Parameter(torch.randn(prefix, hidden)) if prefix else None
        self.place = nn.Parameter(torch.randn(prefix + patches, hidden))
        self.blocks = nn.ModuleList(Block(form, prefix + patches) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(hidden), nn.Linear(2 * hidden, 3)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Run at full length in the form's layout."""
        x = self._embedded(patches)
        x = x.transpose(0, 1) if self.form.layout == "NBH" else x
        early = self.blocks[0](x)
        x = early
        for block in self.blocks[1:]:
            x = block(x)
        x, rows = torch.cat([self.norm(x), early], -1), 1 if self.form.layout == "BNH" else 0
        patch_rows = x.narrow(rows, self.front, x.shape[rows] - self.front)
        return self.head(x), self.head(patch_rows.mean(rows)), self.head(x.select(rows, 0))

    def shortened(self, patches: Tensor, remove: Remove) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Run with rows removed: ``(per row left, mean of the patches, first row, places)``."""
        x = self._embedded(patches)
        x = x[None] if x.ndim == 2 else x
        every = torch.arange(x.shape[1]).expand(len(x), -1)
        state = run_layers(self.blocks, x, every, remove)
        x = torch.cat([self.norm(state.hidden), state.layers[1].entered], -1)
        mean = self.head(x[:, self.front :].mean(1))
        return self.head(x), mean, self.head(x[:, 0]), state.places

    def _embedded(self, patches: Tensor) -> Tensor:
        x = self.embed(patches)
        if self.prefix is not None:
            front = self.prefix if x.ndim == 2 else self.prefix.expand(len(x), -1, -1)
            x = torch.cat([front, x], -2)
        return x + self.place
