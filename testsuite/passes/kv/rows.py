"""Rows like those of a cache: channels of different size and centre, one head larger."""

import torch
from torch import Tensor

from tokopt.passes.kv.format import Format, Side, State
from tokopt.passes.kv.samples import Samples

BATCH, HEADS, WIDTH = 2, 2, 64


def rows_like_a_cache(tokens: int, seed: int = 0, width: int = WIDTH) -> Tensor:
    """fp32 ``[2, 2, tokens, width]``."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.rand(1, HEADS, 1, width, generator=generator) * 2 + 0.2
    centre = torch.randn(1, HEADS, 1, width, generator=generator)
    noise = torch.randn(BATCH, HEADS, tokens, width, generator=generator)
    return noise * size + centre


def salience_of(rows: Tensor, seed: int = 1) -> Tensor:
    """``[B, H, T]``, all different."""
    return torch.rand(rows.shape[:3], generator=torch.Generator().manual_seed(seed))


def constants_of(format: Format, side: Side, rows: Tensor) -> State:
    return format.calibrate(side, Samples([rows]))
