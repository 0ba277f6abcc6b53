"""A tiny vision-language model with a twin that removes rows by hand, also in the merged text."""

from __future__ import annotations

import torch
from testsuite.passes.oracle.tiny_block import HEAD, Block, Form
from testsuite.passes.oracle.tiny_vit import CHANNELS, Remove, run_layers
from torch import Tensor, nn

IMAGE, WORDS = 9, 9


class TinyVlm(nn.Module):
    """``patches [B, P, 5], ids [B, S] -> logits [B, S, 9]``; ids of 9 are places of visual rows.

    Every ``group`` patches become one visual row; there is no class row.
    """

    def __init__(self, vision: Form, text: Form, *, patches: int, group: int, length: int) -> None:
        super().__init__()
        self.group, hidden, wide = group, vision.heads * HEAD, text.heads * HEAD
        self.embed = nn.Linear(CHANNELS, hidden)
        self.place = nn.Parameter(torch.randn(patches, hidden))
        self.tower = nn.ModuleList(Block(vision, patches) for _ in range(2))
        self.project = nn.Sequential(
            nn.LayerNorm(group * hidden), nn.Linear(group * hidden, wide), nn.GELU()
        )
        self.words = nn.Embedding(WORDS + 1, wide)
        self.decoder = nn.ModuleList(Block(text, length) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(wide), nn.Linear(wide, WORDS)

    def forward(self, patches: Tensor, ids: Tensor) -> Tensor:
        """Run at full length."""
        x = self.embed(patches) + self.place
        for block in self.tower:
            x = block(x)
        visual = self.project(x.reshape(len(x), -1, self.group * x.shape[-1])).flatten(0, 1)
        x = self.words(ids)
        x = x.masked_scatter((ids == IMAGE).unsqueeze(-1), visual)
        for block in self.decoder:
            x = block(x)
        return self.head(self.norm(x))

    def shortened(
        self, patches: Tensor, ids: Tensor, tower: Remove, decoder: Remove
    ) -> tuple[Tensor, Tensor]:
        """Run with rows removed: ``(logits [B, K, 9], their places [B, K])``."""
        x = self.embed(patches) + self.place
        every = torch.arange(x.shape[1]).expand(len(x), -1)
        state = run_layers(self.tower, x, every, tower)
        visual = self.project(state.hidden.unflatten(1, (-1, self.group)).flatten(2))
        left = state.places[:, :: self.group] // self.group  # which visual rows there still are
        rows, places = [], []
        for item in range(len(ids)):
            spots = (ids[item] == IMAGE).nonzero().flatten()[left[item]]
            text = (ids[item] != IMAGE).nonzero().flatten()
            both = torch.cat([spots, text])
            x = torch.cat([visual[item], self.words(ids[item, text])])
            order = both.argsort()
            rows.append(x[order])
            places.append(both[order])
        state = run_layers(self.decoder, torch.stack(rows), torch.stack(places), decoder)
        return self.head(self.norm(state.hidden)), state.places
