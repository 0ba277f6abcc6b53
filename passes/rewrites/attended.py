"""Attended: what the functions of a rewrite may read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tokopt.passes.methods.method import LayerTap, TowerTap


@dataclass(frozen=True)
class Marking:
    """What ``mark`` may read: ``candidates`` bool ``[B, N]`` are the visual rows there are now."""

    candidates: Tensor
    tower: TowerTap | None
    options: Mapping[str, int | float | str]


@dataclass(frozen=True)
class Attended:
    """What ``attend`` may read at one layer.

    ``hidden`` is the stream as it enters the layer, ``[B, N, C]``; ``marks`` what ``mark`` made,
    fp32 ``[B, N]``; ``at`` the rows whose attention changes, int64 ``[B, T]``.
    """

    layer: LayerTap
    hidden: Tensor
    candidates: Tensor
    marks: Tensor | None
    at: Tensor
    options: Mapping[str, int | float | str]
