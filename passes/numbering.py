"""Numbering: which visual row of the original each row is, counted from 0, once rows have gone."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokopt.ir.facts import TokenStack
from tokopt.passes.operands import Given, Operands
from tokopt.passes.stack_state import StackState


def visual_numbers(
    operands: Operands, stack: TokenStack, state: StackState
) -> Callable[[Given, Tensor], Tensor]:
    """Return a function of the values given and the candidates: int64 ``[B or 1, N]``.

    Rows of a decoder are counted by the mask of visual rows as the merge wrote them, rows of a
    tower behind its learned ones.  What stands at rows that are not visual means nothing.
    """
    written, origin = operands.maybe(state.written), operands.maybe(state.origin)

    def numbers(given: Given, candidates: Tensor) -> Tensor:
        mask, rows = written(given), origin(given)
        if mask is not None:
            counted = mask.long().cumsum(1) - 1
            return counted if rows is None else counted.gather(1, rows)
        if rows is None:
            rows = torch.arange(candidates.shape[1], device=candidates.device).unsqueeze(0)
        return rows - stack.protected

    return numbers
