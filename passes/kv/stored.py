"""Stored: what a cache costs, counted from the tensors that it consists of."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


def stored_bytes(state: Mapping[str, Tensor]) -> int:
    """Return the bytes of all tensors: codes, scales, zeros, windows."""
    return sum(value.numel() * value.element_size() for value in state.values())


def bits_per_value(state: Mapping[str, Tensor], rows: Tensor) -> float:
    """Return what a value of ``rows`` ``[B, H, T, D]`` costs, with everything stored beside it."""
    return 8 * stored_bytes(state) / rows.numel()


def bytes_per_token(state: Mapping[str, Tensor], rows: Tensor) -> float:
    """Return what one row of one item costs in one side of one layer, over all heads."""
    return stored_bytes(state) / (rows.shape[0] * rows.shape[2])
