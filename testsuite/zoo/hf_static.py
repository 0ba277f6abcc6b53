"""transformers' own static caches: programs whose cache is ``StaticLayer``'s buffers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from transformers.cache_utils import Cache, StaticLayer

from tokopt.cli.capture import traced
from tokopt.cli.capture_families import FAMILIES
from tokopt.cli.capture_generation import Decode, Generation, Prefill
from tokopt.cli.capture_request import Request

ROOM = 24
"""Rows behind the prompt."""


def static_cache(buffers: list[Tensor], written: Tensor) -> Cache:
    """Return a cache of which ``written`` rows are, int64 scalar; it writes into ``buffers``."""
    layers = []
    for keys, values in zip(buffers[::2], buffers[1::2], strict=True):
        layer: Any = StaticLayer(max_cache_len=keys.shape[2])
        layer.keys, layer.values, layer.is_initialized = keys, values, True
        layer.dtype, layer.device = keys.dtype, keys.device
        layer.batch_size, layer.num_heads = keys.shape[:2]
        layer.k_head_dim, layer.v_head_dim = keys.shape[3], values.shape[3]
        layer.cumulative_length = written.clone()
        layers.append(layer)
    return Cache(layers=layers)


class StaticPrefill(Prefill):
    """Prefill that writes into buffers ``[B,H,L,D]`` of zeros, and gives these."""

    shapes: list[tuple[int, ...]]

    def call(self, given: dict[str, Any]) -> dict[str, Tensor]:
        cache = static_cache([torch.zeros(shape) for shape in self.shapes], torch.tensor(0))
        output = self.prompt.output(given, use_cache=True, past_key_values=cache)
        return {"logits": output.logits, **named(cache, "past")}


class StaticDecode(Decode):
    """Decode that is told how many rows are ``written``, and writes one into copies of buffers."""

    def call(self, given: dict[str, Any]) -> dict[str, Tensor]:
        past = [given.pop(name).clone() for name in self.names if name.startswith("past_")]
        cache = static_cache(past, given.pop("written"))
        output = self.model(**given, past_key_values=cache, use_cache=True)
        return {"logits": output.logits, **named(cache, "present")}


def named(cache: Cache, name: str) -> dict[str, Tensor]:
    """Return the buffers by name."""
    rows = [side for layer in cache.layers for side in (layer.keys, layer.values)]
    return {f"{name}_{number}": value for number, value in enumerate(rows)}


def exported(model: Any, request: Request) -> dict[str, ExportedProgram]:
    """Return ``prefill`` and ``decode`` of a vision-language model, of constant sizes."""
    request = replace(request, decode=True)
    capture = FAMILIES[model.config.model_type].prepare(model, request, {})
    generation = Generation.of(capture, request)
    with torch.no_grad():
        plain = Prefill(generation.logits).eval()
        rows = list(plain(*capture.inputs).values())[1:]
        prefill = StaticPrefill(generation.logits).eval()
        prefill.shapes = [(*r.shape[:2], r.shape[2] + ROOM, r.shape[3]) for r in rows]
        buffers = list(prefill(*capture.inputs).values())[1:]
    ids, place, _ = generation._behind(capture.inputs, 1)
    names = ["input_ids", "position_ids", "written", *(f"past_{i}" for i in range(len(rows)))]
    decode = StaticDecode(generation.logits.model, names).eval()
    given = (ids, place, torch.tensor(rows[0].shape[2]), *buffers)
    return {
        "prefill": traced(prefill, capture.inputs, None),
        "decode": traced(decode, given, None),
    }
