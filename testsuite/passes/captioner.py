"""A captioner written by hand: an image encoder and a text decoder that reads it across."""

from dataclasses import dataclass

import torch
from testsuite.zoo.sample import Sample, capture
from testsuite.zoo.weights import noise, randomise
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, WORDS = 24, 3, 7


@dataclass(frozen=True)
class Form:
    """How the model is written: ``tiles`` of patches are projected apart and joined as keys.

    ``ahead``: keys and values of all layers are computed before the first.  ``cross_first``: a
    layer reads the image before its own words.  ``normed``: each layer has a norm of its own on
    the image.  ``latents``: learned queries instead of words.
    """

    tiles: int = 1
    patches: int = 10
    class_row: bool = False
    ahead: bool = False
    cross_first: bool = False
    latents: bool = False
    normed: bool = False


def split(x: Tensor) -> Tensor:
    return x.unflatten(-1, (HEADS, -1)).transpose(1, 2)


class SelfAttention(nn.Module):
    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.norm, self.causal = nn.LayerNorm(HIDDEN), causal
        self.qkv, self.out = nn.Linear(HIDDEN, 3 * HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(part) for part in self.qkv(self.norm(x)).chunk(3, -1))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    def __init__(self, normed: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(HIDDEN)
        self.before = nn.LayerNorm(HIDDEN) if normed else nn.Identity()
        self.query, self.key = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.value, self.out = nn.Linear(HIDDEN, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

    def read(self, image: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        image, shape = self.before(image), (batch, -1, HEADS, HIDDEN // HEADS)
        key, value = self.key(image).view(shape), self.value(image).view(shape)
        return key.transpose(1, 2), value.transpose(1, 2)

    def forward(self, x: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query = split(self.query(self.norm(x)))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(1, 2).flatten(2))


class Captioner(nn.Module):
    """``pixels [B, tiles * patches, 5], words [B, 7] -> [B, 7, 11]``."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        self.form, self.embed = form, nn.Linear(5, HIDDEN)
        self.first = nn.Parameter(torch.zeros(1, 1, HIDDEN))
        self.encoder = nn.ModuleList([SelfAttention(False) for _ in range(3)])
        self.words = nn.Embedding(11, HIDDEN)
        self.queries = nn.Parameter(torch.zeros(1, WORDS, HIDDEN))
        self.layers = nn.ModuleList([SelfAttention(True) for _ in range(3)])
        self.readers = nn.ModuleList([CrossAttention(form.normed) for _ in range(3)])
        self.head = nn.Linear(HIDDEN, 11)

    def forward(self, pixels: Tensor, words: Tensor) -> Tensor:
        form, batch = self.form, pixels.shape[0]
        image = self.embed(pixels).view(batch * form.tiles, form.patches, HIDDEN)
        if form.class_row:
            image = torch.cat([self.first.expand(len(image), -1, -1), image], 1)
        for block in self.encoder:
            image = block(image)
        x = self.queries.expand(batch, -1, -1) if form.latents else self.words(words)
        ready = [reader.read(image, batch) for reader in self.readers] if form.ahead else None
        for index, (own, reader) in enumerate(zip(self.layers, self.readers, strict=True)):
            if not form.cross_first:
                x = own(x)
            x = reader(x, *(ready[index] if ready else reader.read(image, batch)))
            if form.cross_first:
                x = own(x)
        return self.head(x)


def build(form: Form, batch: int = 2) -> Sample:
    """Export with a static batch."""
    module = randomise(Captioner(form).eval(), 0)
    words = torch.arange(batch * WORDS).reshape(batch, WORDS) % 11
    inputs = (noise(batch, form.tiles * form.patches, 5, seed=1), words)
    return Sample("captioner", capture(module, inputs), inputs, module)
