"""Dead entries: parts of a full-length value that a shortened program would not have.

The oracle removes nothing; it marks.  In a floating-point tensor a dead entry is NaN: torch's own
per-row operators then carry the mark along and every copy or permutation takes it to the right
place.  Other dtypes have no NaN, so such a tensor travels with its mask (``Marked``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Marked:
    """A tensor of a dtype without NaN and ``dead``, a bool mask of its shape with a true entry."""

    tensor: Tensor
    dead: Tensor


def is_real(tensor: Tensor) -> bool:
    """Return whether a tensor's dtype has a NaN."""
    return tensor.is_floating_point() or tensor.is_complex()


def bare(value: Any) -> Any:
    """Return a value without its mask."""
    return value.tensor if isinstance(value, Marked) else value


def dead_entries(value: Any) -> Tensor | None:
    """Return the bool mask of a value's dead entries, or None where it has none."""
    if isinstance(value, Marked):
        return value.dead
    if isinstance(value, Tensor) and is_real(value):
        mask = value.isnan()
        return mask if bool(mask.any()) else None
    return None


def has_dead(value: Any) -> bool:
    """Return whether a value, or an element of a list of values, has a dead entry."""
    if isinstance(value, (list, tuple)):
        return any(has_dead(element) for element in value)
    return dead_entries(value) is not None


def bury(tensor: Tensor, dead: Tensor | None) -> Tensor | Marked:
    """Return ``tensor`` with the entries of ``dead`` (broadcast to its shape) marked."""
    if dead is None or not bool(dead.any()):
        return tensor
    dead = dead.expand(tensor.shape)
    if is_real(tensor):
        return tensor.masked_fill(dead, torch.nan)
    return Marked(tensor, dead)


def filled(value: Any, instead: float | bool) -> Any:
    """Return a value's tensor with ``instead`` at the dead entries."""
    dead = dead_entries(value)
    return bare(value) if dead is None else bare(value).masked_fill(dead, instead)


def either(*masks: Tensor | None) -> Tensor | None:
    """Return the union of masks, broadcast against each other; None is empty."""
    result: Tensor | None = None
    for mask in masks:
        if mask is not None:
            result = mask if result is None else result | mask
    return result
