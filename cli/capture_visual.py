"""Visual: the visual side of a prompt, as one form of input.

A form is what the pixels of a prompt look like to the model (one tensor of images, tiles with
sizes, packed patches with a grid, frames, ...).  Models of one form differ in nothing that the
capture has to know, so a new one is a line in ``capture_families``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from tokopt.cli.capture_request import Request
from tokopt.cli.capture_tracing import whole_batch
from tokopt.cli.static_tensor import FoldFactories

Encode = Callable[[Any, Tensor, Mapping[str, Tensor]], Any]


@dataclass(frozen=True)
class Extra:
    """A further input that belongs to the prompt: positions, or who sees which image.

    ``sample`` makes it from ids ``[B,S]`` and the padding mask (or None); ``batch`` and ``length``
    are the dims that have B and S.  ``derived``: the library finds it by itself.
    """

    sample: Callable[[Tensor, Tensor | None], Tensor]
    batch: int
    length: int
    derived: bool = False


@dataclass(frozen=True)
class Visual:
    """The pixels of one prompt, and how they become the rows that the text is merged with.

    ``item`` is the shape of one prompt's pixels; a batch is ``[B, *item]`` if ``stacked``, else
    ``[B * item[0], *item[1:]]``.  ``constants`` are the library's geometry arguments for one
    prompt; they are compile-time constants.  ``token`` is the placeholder's id, ``images`` the
    runs of placeholders in a prompt, ``count`` the visual rows of a prompt.  ``alone`` says why
    the batch must stay 1 ("" if it need not).  ``types`` computes token types from ids.
    ``merged``: placeholders stand for rows one to one; else (cross-attention) one stands for all.
    """

    name: str
    item: tuple[int, ...]
    token: int
    images: int
    count: int
    size: tuple[int, int]
    stacked: bool = False
    kind: str = "image"
    constants: Mapping[str, Tensor] = field(default_factory=dict)
    extras: Mapping[str, Extra] = field(default_factory=dict)
    types: Callable[[Tensor], dict[str, Tensor]] = lambda ids: {}
    encode: Encode | None = None
    alone: str = ""
    merged: bool = True

    def shape(self, batch: int) -> tuple[int, ...]:
        """Return the shape of the pixels of ``batch`` prompts."""
        return (batch, *self.item) if self.stacked else (batch * self.item[0], *self.item[1:])

    @property
    def placeholders(self) -> int:
        """Placeholder tokens in one prompt."""
        return self.count if self.merged else self.images


Form = Callable[[Any, Request, Mapping[str, Any]], Visual]
"""Makes the ``Visual`` of a loaded model, a request and the image processor's settings."""


def library_features(model: Any, pixels: Tensor, constants: Mapping[str, Tensor]) -> Any:
    """Return the library's features of all images; geometry is folded while tracing."""
    encoder = model if hasattr(model, "get_image_features") else model.model
    with FoldFactories() if constants else contextlib.nullcontext(), whole_batch():
        return encoder.get_image_features(pixels, **constants, return_dict=True)


def pixel_pair(size: Any) -> tuple[int, int]:
    """Return (height, width) of a config's image or patch size: a number or a pair."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping):
        return int(size["height"]), int(size["width"])
    return int(size[0]), int(size[1])
