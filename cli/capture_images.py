"""Forms whose pixels are whole images of one size: one tensor ``[B*k,3,h,w]`` or ``[B,k,3,h,w]``.

LLaVA, InternVL, PaliGemma, Gemma3, BLIP-2, Llama4 take the first; Idefics3 the second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from tokopt.cli.capture_request import Request, noise
from tokopt.cli.capture_visual import Encode, Visual, library_features, pixel_pair
from tokopt.ir.errors import InputError

Types = Callable[[Tensor], dict[str, Tensor]]


def images(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the form of ``k`` images per prompt, ``[B*k,3,h,w]``, each as large as the tower's."""
    return _images(model, request, stacked=False, encode=library_features)


def grouped_images(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the form ``[B,k,3,h,w]`` of a library that leaves images out that are all zero.

    How many those are is run-time data, so here every image counts, and all of it (no pixel mask).
    """
    return _images(model, request, stacked=True, encode=_all_images)


def _images(model: Any, request: Request, *, stacked: bool, encode: Encode) -> Visual:
    tower, token = model.config.vision_config, placeholder(model.config)
    size = fixed_size(tower.image_size, request)
    item = (request.images, getattr(tower, "num_channels", 3), *size)
    visual = Visual("pixel_values", item, token, request.images, 0, size, stacked, encode=encode)
    return replace(visual, count=measured_rows(model, visual))


def with_types(form: Callable[..., Visual], types: Callable[[int], Types]) -> Callable[..., Visual]:
    """Return ``form`` with token types computed from ids (``types`` gets the placeholder's id)."""

    def typed(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
        visual = form(model, request, processor)
        return replace(visual, types=types(visual.token))

    return typed


def prefix_types(token: int) -> Types:
    """Every token is of the prefix (type 0): what the processor gives without an answer."""
    return lambda ids: {"token_type_ids": torch.zeros_like(ids)}


def image_types(token: int) -> Types:
    """Placeholders have type 1."""
    return lambda ids: {"token_type_ids": (ids == token).long()}


def placeholder(config: Any, kind: str = "image") -> int:
    """Return the id of the token that stands for a visual row."""
    for name in (f"{kind}_token_id", f"{kind}_token_index"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    raise InputError(f"the config names no {kind} token", expected=f"{kind}_token_id")


def fixed_size(own: Any, request: Request) -> tuple[int, int]:
    """Return the tower's image size; refuse another."""
    height, width = pixel_pair(own)
    if request.image_size not in (None, (height, width)):
        raise InputError(
            "the vision tower has position embeddings for one image size",
            expected=f"--image-size {height}x{width}",
        )
    return height, width


def measured_rows(model: Any, visual: Visual) -> int:
    """Return how many rows one prompt's pixels become: run the tower once and count."""
    assert visual.encode is not None
    with torch.no_grad():
        pixels = noise(*visual.shape(1), seed=0, dtype=model.dtype)
        features = visual.encode(model, pixels, visual.constants)
    rows = features.pooler_output if features.pooler_output is not None else features[0]
    several = rows if isinstance(rows, list | tuple) else [rows]
    return sum(part.numel() // part.shape[-1] for part in several)


def _all_images(model: Any, pixels: Tensor, constants: Mapping[str, Tensor]) -> Any:
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    core = model.model
    states = core.vision_model(pixel_values=pixels.flatten(0, 1)).last_hidden_state
    rows = core.connector(states)
    return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=rows.flatten(0, 1))
