"""Packing: codes of a few bits along the last dim, in whole bytes.

Codes of 1, 2 and 4 bits lie lowest first: the even channel of two 4-bit codes is the low nibble,
as ONNX Runtime's caches have it.  Codes of three values are digits of a number to base 3, five a
byte (3^5 = 243), so they cost 1.6 bits and not 2.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from tokopt.passes.kv.checks import check_multiple

TRITS = 5
"""Codes of three values in a byte."""


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return codes ``[..., D]`` in ``0 .. 2^bits - 1`` as uint8 ``[..., D * bits / 8]``."""
    check_multiple(
        "packing", f"the number of {bits}-bit codes in a row", codes.shape[-1], 8 // bits
    )
    return _joined(codes, 8 // bits, 1 << bits)


def unpack(packed: Tensor, bits: int) -> Tensor:
    """Return the codes of packed rows, uint8 ``[..., D]``."""
    return _parted(packed, 8 // bits, 1 << bits)


def pack_trits(codes: Tensor) -> Tensor:
    """Return codes ``[..., D]`` in ``0 .. 2`` as uint8 ``[..., ceil(D / 5)]``."""
    return _joined(functional.pad(codes, (0, -codes.shape[-1] % TRITS)), TRITS, 3)


def unpack_trits(packed: Tensor, width: int) -> Tensor:
    """Return the codes of packed rows, uint8 ``[..., width]``."""
    return _parted(packed, TRITS, 3)[..., :width]


def _joined(codes: Tensor, count: int, base: int) -> Tensor:
    """Return ``count`` neighbours as digits of one number, the first the lowest."""
    digits = codes.to(torch.uint8).unflatten(-1, (-1, count)).unbind(-1)
    number = digits[-1]
    for digit in reversed(digits[:-1]):
        number = number * base + digit
    return number


def _parted(packed: Tensor, count: int, base: int) -> Tensor:
    digits, rest = [], packed
    for _ in range(count):
        digits.append(rest % base)
        rest = torch.div(rest, base, rounding_mode="floor")
    return torch.stack(digits, -1).flatten(-2)
