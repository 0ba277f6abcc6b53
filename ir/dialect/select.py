"""select: the indices of the rows that stay."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.ir.dialect.declare import op


def _samples() -> list[tuple[Any, ...]]:
    scores = torch.tensor([[0.1, 0.5, 0.5, 0.2, 0.9], [3.0, 1.0, 2.0, 5.0, 4.0]])
    everything = torch.ones(2, 5, dtype=torch.bool)
    text = torch.tensor([[True, True, True, True, False], [False, True, True, True, True]])
    return [(scores, everything, 2), (scores, text, 3), (scores[0], everything[0], 5)]


@op(_samples)
def select(scores: Tensor, candidates: Tensor, total: int) -> Tensor:
    """Return int64 ``[*lead, total]``: ascending indices of the rows that stay.

    ``scores`` is fp32 ``[*lead, N]``, ``candidates`` bool of the same shape.  Every row that is no
    candidate stays; the rest of ``total`` are the candidates of highest score, ties to the lower
    index, NaN below everything.  ``total`` must lie between the number of protected rows (the
    same in every item: counts are static) and N.
    """
    torch._check(
        scores.shape[-1] == candidates.shape[-1], lambda: "select: scores and candidates differ"
    )
    ranked = torch.where(candidates, scores.nan_to_num(nan=float("-inf")), float("inf"))
    order = torch.sort(ranked, dim=-1, descending=True, stable=True)[1]
    return torch.sort(order.narrow(-1, 0, total), dim=-1)[0]
