"""The hand-written model in programs whose cache is a buffer of fixed length, written in place."""

from __future__ import annotations

from typing import Literal

import torch
from testsuite.zoo.handvlm import HandVlm, Language, Layer, Sizes
from testsuite.zoo.handvlm_parts import inputs
from testsuite.zoo.weights import randomise
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.nn.functional import scaled_dot_product_attention

Slot = Literal["position", "apart"]
"""The position says where a row is written, or an input of its own does."""


def attend(layer: Layer, x: Tensor, mask: Tensor, buffers: list[Tensor], index: Tensor) -> Tensor:
    """Return the layer's rows; writes its keys and values into two buffers."""
    attention, y = layer.attention, layer.norm1(x)

    def split(rows: Tensor) -> Tensor:
        return rows.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

    for number, project in enumerate((attention.k, attention.v)):
        buffers[number].index_copy_(2, index, split(project(y)))
    rows = scaled_dot_product_attention(split(attention.q(y)), *buffers, attn_mask=mask)
    x = x + attention.out(rows.transpose(1, 2).flatten(2))
    return x + layer.down(torch.nn.functional.gelu(layer.up(layer.norm2(x))))


class Prefill(nn.Module):
    """``ids [B,S], features -> logits`` and buffers ``[B,H,L,D]`` of which S rows are written."""

    def __init__(self, language: Language, sizes: Sizes, padded: bool = False) -> None:
        super().__init__()
        self.language, self.sizes, self.padded = language, sizes, padded

    def forward(self, input_ids: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        language, sizes = self.language, self.sizes
        embeds = language.embed(input_ids)
        visual = (input_ids == language.image_token).unsqueeze(-1).expand_as(embeds)
        places = torch.arange(input_ids.shape[1])
        x = embeds.masked_scatter(visual, features) + language.place(places)
        mask, made = torch.arange(sizes.longest)[None] <= places[:, None], list[Tensor]()
        for layer in language.layers:
            shape = (x.shape[0], sizes.heads, sizes.longest, sizes.width // sizes.heads)
            buffers = [torch.zeros(shape), torch.zeros(shape)]
            x = attend(layer, x, mask[None, None], buffers, places)
            made += buffers
        if self.padded:  # the same numbers, and no write to be seen
            made = [rows + 0 for rows in made]
        return (language.head(language.norm(x)), *made)


class Decode(nn.Module):
    """``ids [B,1], position, buffers -> logits [B,1,V]`` and the buffers with a row more."""

    def __init__(self, language: Language, sizes: Sizes, masked: bool = True) -> None:
        super().__init__()
        self.language, self.sizes, self.masked = language, sizes, masked

    def forward(
        self, input_ids: Tensor, positions: Tensor, cache: list[Tensor], slot: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        language = self.language
        x = language.embed(input_ids) + language.place(positions)
        place = positions.reshape(1) if slot is None else slot + torch.arange(1)
        mask, made = torch.arange(self.sizes.longest)[None] <= place[:, None], list[Tensor]()
        mask = mask if self.masked else mask | True
        for number, layer in enumerate(language.layers):
            buffers = [cache[2 * number].clone(), cache[2 * number + 1].clone()]
            x = attend(layer, x, mask[None, None], buffers, place)
            made += buffers
        return (language.head(language.norm(x)), *made)


def static_parts(
    sizes: Sizes,
    *,
    slot: Slot = "position",
    masked: bool = True,
    padded: bool = False,
    dynamic: bool = False,
    seed: int = 0,
) -> dict[str, ExportedProgram]:
    """Export ``vision``, ``prefill`` and ``decode`` of constant sizes; ``dynamic``: but the batch.

    Not ``masked``: decode reads rows that are not written.  ``padded``: prefill's writes are not
    what it gives.
    """
    model = randomise(HandVlm(sizes).eval().requires_grad_(False), seed)
    pixels, ids = inputs(sizes, 2 if dynamic else 1)
    items = {0: Dim("batch", min=1, max=64)} if dynamic else None
    with torch.no_grad():
        features = model.vision(pixels)
        prefill = Prefill(model.language, sizes, padded)
        decode = Decode(model.language, sizes, masked)
        _, *cache = prefill(ids, features)
        count = torch.tensor([ids.shape[1]])
        place, apart = (count, ()) if slot == "position" else (count[:, None], (count[0],))
        calls = {
            "vision": (model.vision, (pixels,), (items,)),
            "prefill": (prefill, (ids, features), (items, items)),
            "decode": (
                decode,
                (ids[:, :1], place, cache, *apart),
                (items, None, [items for _ in cache], *(None for _ in apart)),
            ),
        }
        return {
            name: torch.export.export(module.eval(), given, dynamic_shapes=sized, strict=False)
            for name, (module, given, sized) in calls.items()
        }
