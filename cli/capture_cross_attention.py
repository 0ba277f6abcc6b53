"""The form of a model that reads images by cross-attention: tiles, and a mask of who sees which.

The text has one placeholder per image and no visual rows; keys and values come from the tower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokopt.cli.capture_images import placeholder
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_visual import Extra, Visual, pixel_pair
from tokopt.ir.errors import InputError


def cross_attended(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the form ``[B,k,tiles,3,s,s]``; ``--image-size`` is a supported arrangement of tiles.

    Arrangements with fewer tiles than the model's maximum leave padding tiles, masked as the
    processor does.
    """
    tower, token = model.config.vision_config, placeholder(model.config)
    side, most = pixel_pair(tower.image_size)[0], tower.max_num_tiles
    ratios = [tuple(ratio) for ratio in tower.supported_aspect_ratios]
    full = max(ratios, key=lambda ratio: (ratio[0] * ratio[1], ratio))
    height, width = request.image_size or (full[0] * side, full[1] * side)
    ratio = (height // side, width // side)
    if ratio not in ratios or (height, width) != (ratio[0] * side, ratio[1] * side):
        raise InputError(
            f"the model has no arrangement of tiles for an image of {height}x{width}",
            expected=" or ".join(f"{a * side}x{b * side}" for a, b in ratios),
            hint="--image-size",
        )
    used = ratio[0] * ratio[1]
    here = torch.zeros(1, request.images, most, dtype=torch.int64)
    here[..., :used] = 1
    number = torch.full((1, request.images), 1 + ratios.index(ratio))  # 0 is for no image

    def seen(ids: Tensor, mask: Tensor | None) -> Tensor:
        """A token sees the last image in front of it: ``[B,S,k,tiles]``."""
        upto = (ids == token).cumsum(1)
        last = upto[..., None] == torch.arange(1, request.images + 1)
        return last.long()[..., None] * here[:, None]

    return Visual(
        "pixel_values",
        (request.images, most, tower.num_channels, side, side),
        token,
        request.images,
        request.images * used * ((side // tower.patch_size) ** 2 + 1),
        (height, width),
        stacked=True,
        constants={"aspect_ratio_ids": number, "aspect_ratio_mask": here},
        extras={"cross_attention_mask": Extra(seen, batch=0, length=1)},
        merged=False,
    )
