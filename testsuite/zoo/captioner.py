"""A captioner from no library: an image encoder, and a decoder that reads it by cross-attention."""

from __future__ import annotations

import torch
from testsuite.zoo.plain_layers import SIDE, WIDTH, Attend, Block, Patches
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn

VOCABULARY, LENGTH = 70, 9


class Reader(nn.Module):
    """A decoder layer: causal self-attention, cross-attention to the image, MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(WIDTH) for _ in range(3))
        self.words, self.image = Attend(), Attend()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 96), nn.ReLU(), nn.Linear(96, WIDTH))

    def forward(self, x: Tensor, image: Tensor, causal: Tensor) -> Tensor:
        x = x + self.words(self.norm1(x), mask=causal)
        x = x + self.image(self.norm2(x), image)
        return x + self.mlp(self.norm3(x))


class Captioner(nn.Module):
    """``(images [B,3,48,48], ids [B,S]) -> logits [B,S,70]``."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.encoder = Patches(), nn.Sequential(Block(), Block(), Block())
        self.norm = nn.LayerNorm(WIDTH)
        self.words, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(32, WIDTH)
        self.decoder = nn.ModuleList(Reader() for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        image = self.norm(self.encoder(self.patches(images)))
        length = ids.shape[1]
        x = self.words(ids) + self.places(torch.arange(length))
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        for layer in self.decoder:
            x = layer(x, image, causal)
        return self.head(x)


def build(seed: int = 0) -> Sample:
    """Export logits for an image and the caption so far."""
    module = randomise(Captioner().eval(), seed)

    def inputs(offset: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed + offset)
        ids = torch.randint(0, VOCABULARY, (1, LENGTH), generator=generator)
        return noise(1, 3, SIDE, SIDE, seed=seed + offset), ids

    exported = capture(module, inputs(0))
    return Sample("captioner", exported, inputs(0), module, (inputs(1), inputs(2)))
