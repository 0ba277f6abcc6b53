"""cached_attention: attention of new rows over a cache stored in few bits, and over themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.ir.dialect.attention_rows import LOWEST
from tokopt.ir.dialect.declare import op

CODES = (torch.int8, torch.uint8, torch.float8_e4m3fn)
"""What codes are stored in."""


def _samples() -> list[tuple[Any, ...]]:
    numbers = torch.Generator().manual_seed(0)

    def floats(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=numbers)

    def constants() -> tuple[Tensor, ...]:
        return floats(1, 2, 1, 8).abs() / 50, floats(1, 2, 1, 8)

    bytes8 = torch.randint(-128, 128, (2, 2, 6, 8), generator=numbers).to(torch.int8)
    nibbles = torch.randint(0, 256, (2, 2, 6, 4), generator=numbers).to(torch.uint8)
    later = torch.full((2, 1, 1, 6), LOWEST).masked_fill(torch.arange(6) > 1, 0.0)
    rows = floats(2, 2, 1, 8), floats(2, 2, 1, 8)
    many = floats(2, 2, 3, 8), floats(2, 2, 3, 8)
    sides = (*constants(), *constants())
    return [
        (floats(2, 4, 1, 8), *rows, bytes8, bytes8.flip(2), *sides, None, 0.35),
        (floats(2, 2, 1, 8), *rows, nibbles, nibbles.flip(2), *sides, later, 0.35),
        (floats(2, 4, 3, 8), *many, bytes8, nibbles, *sides, later, 0.2),
    ]


@op(_samples)
def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    key_centre: Tensor,
    value_scale: Tensor,
    value_centre: Tensor,
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Return the attention of R queries over T rows of a cache, ``[B, H, R, d]``.

    ``query`` is ``[B, H, R, d]``; query heads share the G heads of the cache in equal groups of
    neighbours.  ``keys`` and ``values`` are stored rows, the new ones last: codes int8 or
    float8_e4m3fn ``[B, G, T, d]``, or uint8 ``[B, G, T, d / 2]`` with the even channel in the low
    nibble and 8 for 0.  A code stands for ``code * scale + centre``, constants fp32
    ``[1, G, 1, d]``.  The last N rows are read as ``key`` and ``value`` ``[B, G, N, d]`` have them,
    not as stored.  ``bias`` is added to the logits, of four dims, and broadcasts.  Query, ``key``
    and ``value`` may be of half precision; all sums are fp32, the result is of the query's type.
    """
    old = keys.shape[2] - key.shape[2]
    past = _read(keys.narrow(2, 0, old), key_scale, key_centre)
    whole = torch.cat([past, key.float()], 2)
    past = _read(values.narrow(2, 0, old), value_scale, value_centre)
    mixed = torch.cat([past, value.float()], 2)
    batch, heads, rows, width = query.shape
    grouped = query.float().reshape(batch, key.shape[1], -1, width)
    logits = torch.matmul(grouped, whole.transpose(2, 3)).reshape(batch, heads, rows, -1) * scale
    if bias is not None:
        logits = (logits + bias).clamp_min(LOWEST)
    weights = torch.softmax(logits, -1).reshape(
        batch, key.shape[1], heads // key.shape[1] * rows, -1
    )
    return torch.matmul(weights, mixed).reshape(batch, heads, rows, width).to(query.dtype)


def _read(codes: Tensor, scale: Tensor, centre: Tensor) -> Tensor:
    return steps_of(codes) * scale + centre


def steps_of(codes: Tensor) -> Tensor:
    """Return the steps of codes of 8 or 4 bits, fp32."""
    torch._check(
        codes.dtype in CODES,
        lambda: "cached_attention: codes are int8, E4M3, or uint8 with two of 4 bits in each",
    )
    if codes.dtype != torch.uint8:
        return codes.float()
    high = torch.div(codes, 16, rounding_mode="floor")
    return torch.stack([codes % 16, high], -1).flatten(-2).float() - 8
