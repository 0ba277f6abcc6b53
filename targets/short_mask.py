"""Short mask: which rows of a shortened cache are padding, told from the mask of the whole prompt.

Dropped rows are visual, and padding is none of them: each item's mask has that many ones fewer, and
its zeros in front and behind as they were.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InputError


def short_mask(mask: Tensor, rows: int, name: str) -> Tensor:
    """Return the mask ``[B, rows]`` for ``mask`` ``[B, S]``, 0 at padding.

    Raises ``InputError`` for padding between tokens, where it is not known what was dropped.
    """
    real = mask != 0
    ones, first = real.sum(1, keepdim=True), real.long().argmax(1, keepdim=True)
    at = torch.arange(mask.shape[1])
    if not torch.equal((at >= first) & (at < first + ones), real):
        raise InputError(
            "a prompt is padded between its tokens",
            where=f"the input {name!r}",
            expected="0 in front of a prompt or behind it, and 1 elsewhere",
        )
    at, ones = at[:rows], ones - (mask.shape[1] - rows)
    return ((at >= first) & (at < first + ones)).to(mask.dtype)
