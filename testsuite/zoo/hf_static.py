"""transformers' own static caches: programs whose cache is ``StaticLayer``'s buffers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers.cache_utils import Cache, StaticLayer


def static_cache(buffers: list[Tensor], written: Tensor) -> Cache:
    """Return a cache of which ``written`` rows are, int64 scalar; it writes into ``buffers``."""
    layers = []
    for keys, values in zip(buffers[::2], buffers[1::2], strict=True):
        layer: Any = StaticLayer(max_cache_len=keys.shape[2])
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.batch_size, layer.num_heads = keys.shape[:2]
        layer.max_batch_size = keys.shape[0]
        layer.k_head_dim, layer.v_head_dim = keys.shape[3], values.shape[3]
        layer.cumulative_length = written.clone()
        layers.append(layer)
    return Cache(layers=layers)


class Prefill(nn.Module):
    """``pixels, ids [B,S] -> logits`` and buffers ``[B,H,L,D]``, the prompt's rows in front."""

    def __init__(self, model: Any, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.model, self.shape = model, shape

    def forward(self, pixel_values: Tensor, input_ids: Tensor) -> dict[str, Tensor]:
        count = 2 * self.model.config.text_config.num_hidden_layers
        buffers = [torch.zeros(self.shape) for _ in range(count)]
        cache = static_cache(buffers, torch.tensor(0))
        given = {"pixel_values": pixel_values, "input_ids": input_ids}
        output = self.model(**given, past_key_values=cache, use_cache=True)
        return {"logits": output.logits, **named(cache)}


class Decode(nn.Module):
    """``ids [B,1], position_ids, written, buffers -> logits`` and the buffers with a row more."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, written: Tensor, past: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        cache = static_cache([value.clone() for value in past.values()], written)
        given = {"input_ids": input_ids, "position_ids": position_ids}
        output = self.model(**given, past_key_values=cache, use_cache=True)
        return {"logits": output.logits, **named(cache)}


def named(cache: Cache) -> dict[str, Tensor]:
    """Return the buffers by the names that decode takes them under."""
    rows = [side for layer in cache.layers for side in (layer.keys, layer.values)]
    return {f"past_{number}": value for number, value in enumerate(rows)}


def exported(
    model: Any, pixels: Tensor, ids: Tensor, heads: int, width: int, longest: int
) -> dict[str, ExportedProgram]:
    """Return ``prefill`` and ``decode`` of a vision-language model, of constant sizes."""
    prefill = Prefill(model, (len(ids), heads, longest, width)).eval()
    with torch.no_grad():
        _, *buffers = prefill(pixels, ids).values()
        past = {f"past_{number}": value for number, value in enumerate(buffers)}
        count = torch.tensor(ids.shape[1])
        place = count.reshape(1, 1).expand(len(ids), 1).contiguous()
        return {
            "prefill": torch.export.export(prefill, (pixels, ids), strict=False),
            "decode": torch.export.export(
                Decode(model).eval(), (ids[:, :1], place, count, past), strict=False
            ),
        }
