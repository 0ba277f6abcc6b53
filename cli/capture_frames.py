"""The form whose pixels are the frames of one video per prompt: ``[B,F,3,h,w]``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokopt.cli.capture_images import fixed_size, measured_rows, placeholder
from tokopt.cli.capture_request import Request
from tokopt.cli.capture_visual import Visual
from tokopt.ir.errors import InputError

DEFAULT_FRAMES = 8


def frames(model: Any, request: Request, processor: Mapping[str, Any]) -> Visual:
    """Return the form of one video of ``--frames`` frames, each as large as the tower's images."""
    if request.images != 1:
        raise InputError(
            f"{model.config.model_type} is exported for one video per prompt",
            expected="--frames, not --images",
        )
    tower, token = model.config.vision_config, placeholder(model.config, "video")
    size = fixed_size(tower.image_size, request)
    item = (request.frames or DEFAULT_FRAMES, tower.num_channels, *size)
    visual = Visual(
        "pixel_values_videos",
        item,
        token,
        1,
        0,
        size,
        stacked=True,
        kind="video",
        encode=_video_features,
    )
    return replace(visual, count=measured_rows(model, visual))


def _video_features(model: Any, pixels: Tensor, constants: Mapping[str, Tensor]) -> Any:
    """Return the library's features ``[B, rows, H]`` as one video of ``B * rows`` rows.

    Its consumer flattens the first two dims of every video's features.
    """
    features = model.get_video_features(pixels, return_dict=True)
    features.pooler_output = [features.pooler_output.flatten(0, 1)[None]]
    return features
