"""What HF itself says about the zoo's LLaVA: attention and values of every layer, eager."""

import functools
from dataclasses import dataclass

import numpy as np
import torch
from testsuite.zoo import llava
from torch import nn


@dataclass(frozen=True)
class Truth:
    """Per layer: attention ``[B, H, N, N]``, values ``[B, N, H_kv, d]``; visual ``[B, S]``."""

    tower: list[np.ndarray]
    tower_values: list[np.ndarray]
    decoder: list[np.ndarray]
    decoder_values: list[np.ndarray]
    visual: np.ndarray


def _watch(layers: list[nn.Module], width: int, into: list[np.ndarray]) -> None:
    for layer in layers:
        layer.self_attn.v_proj.register_forward_hook(
            lambda _, __, out: into.append(out.unflatten(-1, (-1, width)).numpy())
        )


@functools.cache
def truth() -> Truth:
    """The model and inputs of ``llava.build(2)``."""
    pixels, ids = llava.inputs(2, llava.VISUAL + 9, 0)
    model = llava.model(attention="eager", seed=0)
    core = model.model
    tower_values: list[np.ndarray] = []
    decoder_values: list[np.ndarray] = []
    with torch.no_grad():
        tower_model = core.vision_tower
        inner = getattr(tower_model, "vision_model", tower_model)
        _watch(list(inner.encoder.layers), 16, tower_values)
        tower = tower_model(pixels, output_attentions=True).attentions
        seen = list(tower_values)
        _watch(list(core.language_model.layers), 16, decoder_values)
        decoder = model(
            pixel_values=pixels, input_ids=ids, output_attentions=True, use_cache=False
        ).attentions
    return Truth(
        [a.numpy() for a in tower],
        seen,
        [a.numpy() for a in decoder],
        decoder_values,
        (ids == llava.IMAGE_TOKEN).numpy(),
    )
