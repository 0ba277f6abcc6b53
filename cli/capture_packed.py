"""The form whose pixels are patches of all images packed in one sequence, with their grid.

The grid is a compile-time constant; the three-axis positions that the library derives from it and
from the ids are an input of the program, because deriving them loops over token values.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tokopt.cli.capture_images import placeholder
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_visual import Extra, Visual, library_features
from tokopt.cli.static_tensor import StaticTensor
from tokopt.ir.errors import InputError

DEFAULT_SIDE = 448
ALONE = "patches of all images are packed"


def packed(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the form ``[k*h*w, features]``; an image must be whole merged patches."""
    vision, token = model.config.vision_config, placeholder(model.config)
    unit = vision.patch_size * vision.spatial_merge_size
    height, width = request.image_size or default_size(processor, unit)
    if height % unit or width % unit:
        raise InputError(
            f"an image of {height}x{width} is no whole number of merged patches",
            expected=f"multiples of {unit} pixels",
            hint="--image-size",
        )
    grid = (1, height // vision.patch_size, width // vision.patch_size)
    features = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    grids = StaticTensor.of(torch.tensor([grid] * request.images))

    def types(ids: Tensor) -> dict[str, Tensor]:
        return {"mm_token_type_ids": (ids == token).int()}

    def positions(ids: Tensor, mask: Tensor | None) -> Tensor:
        found, _ = model.model.get_rope_index(
            input_ids=ids,
            image_grid_thw=grids.as_subclass(Tensor),
            attention_mask=mask,
            **types(ids),
        )
        return found

    return Visual(
        "pixel_values",
        (request.images * grid[1] * grid[2], features),
        token,
        request.images,
        request.images * (height // unit) * (width // unit),
        (height, width),
        constants={"image_grid_thw": grids},
        extras={"position_ids": Extra(positions, batch=1, length=2, derived=True)},
        types=types,
        encode=library_features,
        alone=ALONE,
    )


def default_size(processor: Mapping[str, Any], unit: int) -> tuple[int, int]:
    """Return a square near 448 that the processor's pixel limits allow, in whole merged patches."""
    limits = processor.get("size")
    limits = limits if isinstance(limits, Mapping) else {}
    most = processor.get("max_pixels") or limits.get("longest_edge") or DEFAULT_SIDE**2
    least = processor.get("min_pixels") or limits.get("shortest_edge") or 0
    side = max(unit, min(DEFAULT_SIDE, math.isqrt(most)) // unit * unit)
    while side * side < least:
        side += unit
    return side, side
