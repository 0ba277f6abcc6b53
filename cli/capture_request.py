"""What the user wants the captured graph to be built for."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

import torch
from torch import Tensor

DYNAMIC = ("batch", "length")
"""The sizes that may be left free: items, and tokens of the prompt."""

SPARE_TEXT = 64
"""Text tokens of a sample prompt when ``--prompt-length`` is not given."""


@dataclass(frozen=True)
class Request:
    """Sizes of the graph; ``None`` means the model's own.

    ``image_size`` is (height, width) in pixels, ``prompt_length`` counts image placeholders too.
    ``images`` and ``frames`` (of a video) are per prompt.  ``padding``: the program takes an
    ``attention_mask``.  ``decode``: prefill and decode are two programs.
    """

    image_size: tuple[int, int] | None = None
    prompt_length: int | None = None
    dynamic: frozenset[str] = frozenset()
    images: int = 1
    frames: int | None = None
    padding: bool = False
    decode: bool = False

    @property
    def free_batch(self) -> bool:
        """Whether the batch size is left free."""
        return "batch" in self.dynamic

    @property
    def free_length(self) -> bool:
        """Whether the prompt length is left free."""
        return "length" in self.dynamic

    def sizes(self, length: int) -> list[tuple[int, int]]:
        """Return (batch, prompt length) of the traced sample, then of those to compare on.

        The traced batch is 2 where it is free (``torch.export`` would bake 0 and 1 in).  The
        comparison always has another sample of the traced size: values may have been baked in too.
        """
        if not self.free_batch:
            third = [(1, length + 7 * self.free_length)]  # unpadded where rows are padded
            return [(1, length), (1, length), *(third if self.free_length or self.padding else [])]
        return [(2, length), (2, length), (1, length), (3, length + 7 * self.free_length)]


def noise(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Return standard normal values, as normalised pixels are about; the same for one seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def count(text: str) -> int:
    """Parse a positive number for argparse."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 4096")
    return int(text)


def image_size(text: str) -> tuple[int, int]:
    """Parse ``HxW`` for argparse."""
    match = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH in pixels, like 336x336")
    return int(match[1]), int(match[2])


def dynamic(text: str) -> frozenset[str]:
    """Parse a comma-separated list of the sizes to leave free, for argparse."""
    names = frozenset(text.split(","))
    if not names <= set(DYNAMIC):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of {', '.join(DYNAMIC)}")
    return names
