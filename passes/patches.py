"""Patches: the grey values that each row of a tower was made of."""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.places import Places


def grey_patches(image: Tensor, places: Places, front: int, rows: int) -> Tensor:
    """Return ``[I, rows, P]`` of an image ``[I, C, H, W]``: mean over channels, per row its patch.

    ``places`` are those of the tower's rows, which stand behind ``front`` learned ones.
    """
    _, height, width = places.shape
    grey = image.float().mean(1)
    cut = grey.unflatten(2, (width, -1)).unflatten(1, (height, -1)).transpose(2, 3)
    patches = cut.flatten(1, 2).flatten(2)
    index = (places.row * width + places.column).to(image.device)
    own = patches[:, index]
    return torch.nn.functional.pad(own, (0, 0, front, rows - front - own.shape[1]))
