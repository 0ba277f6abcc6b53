"""LLaVA as serving stacks split it: pixels to features; ids and features to logits and cache."""

from __future__ import annotations

from typing import Any

import torch
from testsuite.zoo import llava
from testsuite.zoo.sample import capture
from torch import Tensor, nn
from torch.export import ExportedProgram
from transformers.modeling_outputs import BaseModelOutputWithPooling


class Vision(nn.Module):
    """``pixel_values [1,3,S,S] -> features [N,H]``."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.model

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        given = self.model.get_image_features(pixel_values=pixel_values, return_dict=True)
        return {"features": torch.cat(list(given.pooler_output))}


class Prefill(nn.Module):
    """``input_ids [1,S], features [N,H] -> logits [1,S,V]``, keys and values of every layer."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, features: Tensor) -> tuple[Tensor, ...]:
        image = BaseModelOutputWithPooling(None, [features])
        out = self.model(input_ids=input_ids, mm_encoder_outputs={"image": image}, use_cache=True)
        caches = [(layer.keys, layer.values) for layer in out.past_key_values.layers]
        return (out.logits, *(tensor for pair in caches for tensor in pair))


def parts(seed: int = 0) -> tuple[dict[str, ExportedProgram], Any]:
    """Return ``vision`` and ``prefill`` of the tiny model, and the model."""
    model = llava.model(attention="sdpa", seed=seed, layers=2)
    pixels, ids = llava.inputs(1, llava.VISUAL + 9, seed)
    vision, prefill = Vision(model), Prefill(model)
    with torch.no_grad():
        features = vision(pixels)["features"]
    return {
        "vision": capture(vision, (pixels,)),
        "prefill": capture(prefill, (ids, features)),
    }, model
