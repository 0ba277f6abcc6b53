"""Forms whose pixels come with image sizes: any-resolution tiles, and images packed by size.

``image_sizes`` decides how tiles are laid out, cropped and cut up, in Python: it is a constant.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from tokopt.cli.capture_images import images, measured_rows, placeholder
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_visual import Visual, library_features, pixel_pair
from tokopt.cli.static_tensor import StaticTensor
from tokopt.ir.errors import InputError

ALONE = "the sizes of its images are constants of the graph"


def tiles(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the any-resolution form: ``[k,tiles,3,s,s]``, a thumbnail and the tiles of a grid.

    ``--image-size`` is the size of the photo.  Several photos in one prompt are thumbnails only
    where the model reads ``batch_num_images``.
    """
    config, side = model.config, pixel_pair(model.config.vision_config.image_size)
    size = request.image_size or _widest(config.image_grid_pinpoints)
    from transformers.image_processing_utils import select_best_resolution

    height, width = select_best_resolution(size, config.image_grid_pinpoints)
    parts = 1 + (height // side[0]) * (width // side[1])
    constants = {"image_sizes": torch.tensor([size] * request.images)}
    if "batch_num_images" in inspect.signature(model.get_image_features).parameters:
        constants["batch_num_images"] = torch.tensor([request.images])
        parts = parts if request.images == 1 else 1
    item = (request.images, parts, config.vision_config.num_channels, *side)
    return _counted(model, item, size, constants)


def sized(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the form ``[k,3,h,w]`` of a tower that packs images of any size into one sequence."""
    config, tower = model.config, model.config.vision_config
    unit = tower.patch_size * getattr(config, "spatial_merge_size", 1)
    height, width = request.image_size or pixel_pair(tower.image_size)
    if height % unit or width % unit:
        raise InputError(
            f"an image of {height}x{width} is no whole number of merged patches",
            expected=f"multiples of {unit} pixels",
            hint="--image-size",
        )
    constants = {"image_sizes": torch.tensor([(height, width)] * request.images)}
    item = (request.images, tower.num_channels, height, width)
    return _counted(model, item, (height, width), constants)


def images_or_sized(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the form of a model that exists with either kind of tower."""
    tower = model.config.vision_config
    form = sized if tower.model_type == "pixtral" else images
    return form(model, request, processor)


def _counted(
    model: Any,
    item: tuple[int, ...],
    size: tuple[int, int],
    constants: Mapping[str, torch.Tensor],
) -> Visual:
    visual = Visual(
        "pixel_values",
        item,
        placeholder(model.config),
        item[0],
        0,
        size,
        constants={name: StaticTensor.of(value) for name, value in constants.items()},
        encode=library_features,
        alone=ALONE,
    )
    return replace(visual, count=measured_rows(model, visual))


def _widest(pinpoints: Any) -> tuple[int, int]:
    """Return the widest of the resolutions that the model knows."""
    height, width = max(pinpoints, key=lambda size: (size[1] / size[0], size[0]))
    return int(height), int(width)
