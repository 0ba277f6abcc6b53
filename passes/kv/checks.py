"""Checks of rows that are to be stored: refused with a reason before they spoil a cache."""

from __future__ import annotations

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from tokopt.ir.errors import InputError

LARGEST = torch.finfo(torch.float16).max


def check_rows(rows: Tensor, name: str) -> None:
    """Raise ``InputError`` unless rows are floats ``[B, H, T, D]`` that half precision can hold.

    Inside a trace there are no numbers to look at: only what the graph knows is checked.
    """
    if rows.ndim != 4 or not rows.is_floating_point():
        raise InputError(
            f"{name} cannot store {rows.dtype} {list(rows.shape)}",
            expected="floats of shape [batch, heads, tokens, head width]",
        )
    if isinstance(rows, FakeTensor) or torch.compiler.is_compiling() or not rows.numel():
        return
    if not bool(torch.isfinite(rows).all()):
        raise InputError(
            f"{name}: rows of the cache are not finite", expected="no NaN, no infinity"
        )
    largest = float(rows.abs().max())
    if rows.dtype == torch.float32 and largest > LARGEST:
        raise InputError(
            f"{name}: a row of the cache has {largest:g}, more than half precision holds",
            expected=f"at most {LARGEST:g}",
        )


def check_multiple(name: str, what: str, count: int, of: int) -> None:
    """Raise ``InputError`` unless a count is a multiple."""
    if count % of:
        raise InputError(f"{name}: {what} is {count}", expected=f"a multiple of {of}")


def check_choice(name: str, what: str, value: int, known: tuple[int, ...]) -> None:
    """Raise ``InputError`` unless a setting is one of the known ones."""
    if value not in known:
        words = " or ".join(str(one) for one in known)
        raise InputError(f"{name}: {what} = {value}", expected=words)
