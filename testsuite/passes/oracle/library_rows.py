"""Library models run layer by layer on the rows that are left: references for exported ones.

The layers are transformers' own, with spelled-out attention; what removes rows is written here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from testsuite.passes.oracle.tiny_vit import take
from torch import Tensor
from transformers.vision_utils import get_vision_window_index

Keep = dict[int, int]
"""Depth of a stage -> visual rows that stay; the longest rows do."""


def longest(x: Tensor, places: Tensor, visual: Callable[[int, int], bool], keep: int) -> Tensor:
    """Return the rows that stay: all that are not visual, and the ``keep`` longest that are."""
    chosen = []
    for item, row in enumerate(places.tolist()):
        size = x[item].square().sum(-1).tolist()
        free = [i for i, place in enumerate(row) if visual(item, place)]
        best = set(sorted(free, key=lambda i: (-size[i], i))[:keep])
        chosen.append([i for i in range(len(row)) if i in best or i not in free])
    return torch.tensor(chosen)


def run_tower(layers: Sequence[Any], x: Tensor, prefix: int, keep: Keep) -> tuple[Tensor, Tensor]:
    """Run encoder layers; return rows and their places.  ``prefix`` learned rows stay."""
    places = torch.arange(x.shape[1]).expand(len(x), -1)
    for depth in range(len(layers) + 1):
        if depth in keep:
            index = longest(x, places, lambda item, place: place >= prefix, keep[depth])
            x, places = take(x, index), places.gather(1, index)
        if depth < len(layers):
            found = layers[depth](x, attention_mask=None) if prefix == 1 else layers[depth](x)
            x = found[0] if isinstance(found, tuple) else found
    return x, places


def run_qwen_tower(
    core: Any, pixels: Tensor, grid: tuple[int, int], keep: Keep
) -> tuple[Tensor, Tensor]:
    """Run a windowed tower that loses 2x2 groups before its last layer and behind it.

    Return the visual rows ``[1, K, H]`` that are left and which of all they are, ``[1, K]``.
    """
    tower, entered = core.visual, {}
    last = tower.blocks[-1]
    hook = last.register_forward_pre_hook(
        lambda _, args, given: entered.update(given, x=args[0]), with_kwargs=True
    )
    tower(pixels, torch.tensor([[1, *grid]]))
    hook.remove()
    x, (cos, sin) = entered["x"], entered["position_embeddings"]
    order, _ = get_vision_window_index(
        torch.tensor([[1, *grid]]), tower.spatial_merge_size, tower.window_size, tower.patch_size
    )
    for depth in (len(tower.blocks) - 1, len(tower.blocks)):
        if depth in keep:
            worth = x.square().sum(-1).sqrt().view(-1, 4).mean(1).tolist()
            best = sorted(range(len(worth)), key=lambda g: (-worth[g], g))[: keep[depth] // 4]
            rows = (torch.tensor(sorted(best))[:, None] * 4 + torch.arange(4)).flatten()
            x, cos, sin, order = x[rows], cos[rows], sin[rows], order[rows[::4] // 4]
        if depth < len(tower.blocks):
            ends = torch.tensor([0, len(x)])
            x = last(x, cu_seqlens=ends, position_embeddings=(cos, sin))
    left, back = order.sort()
    return tower.merger(x)[back][None], left[None]


@dataclass(frozen=True)
class Prompt:
    """Ids ``[B, S]``, the id of an image token, and rotary positions ``[..., B, S]``."""

    ids: Tensor
    image: int
    positions: Tensor

    def visual(self, item: int, place: int) -> bool:
        """Return whether a place is a visual row."""
        return int(self.ids[item, place]) == self.image


def run_decoder(model: Any, prompt: Prompt, visual: Tensor, left: Tensor, keep: Keep) -> Any:
    """Run a causal decoder on the text and the ``left [B, K]``-th visual rows ``[B, K, H]``.

    Return logits and places.
    """
    text = model.model.language_model
    x, places = _merged(model.model.get_input_embeddings()(prompt.ids), prompt, visual, left)
    for depth, layer in enumerate(text.layers):
        if depth in keep:
            index = longest(x, places, prompt.visual, keep[depth])
            x, places = take(x, index), places.gather(1, index)
        at = prompt.positions.gather(-1, places.expand(*prompt.positions.shape[:-1], -1))
        hidden = places[:, None, None, :] > places[:, None, :, None]
        mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
        x = layer(x, attention_mask=mask, position_embeddings=text.rotary_emb(x, at))
    return model.lm_head(text.norm(x)), places


def _merged(words: Tensor, prompt: Prompt, visual: Tensor, left: Tensor) -> tuple[Tensor, Tensor]:
    rows, places = [], []
    for item, ids in enumerate(prompt.ids):
        spots = (ids == prompt.image).nonzero().flatten()[left[item]]
        text = (ids != prompt.image).nonzero().flatten()
        place, order = torch.cat([spots, text]).sort()
        rows.append(torch.cat([visual[item], words[item, text]])[order])
        places.append(place)
    return torch.stack(rows), torch.stack(places)
