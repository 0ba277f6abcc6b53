"""gather: the chosen rows of one dim, each batch item by its own index."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import statically_known_true

from tokopt.ir.dialect.declare import op


def _samples() -> list[tuple[Any, ...]]:
    x = torch.arange(2 * 5 * 3, dtype=torch.float32).reshape(2, 5, 3)
    index = torch.tensor([[0, 2], [1, 4]])
    mask = torch.arange(5)[:, None] >= torch.arange(5)
    return [
        (x, index, 1, [0]),
        (x[0], index[0], 0, []),
        (x.transpose(0, 1), index, 0, [1]),
        (mask[None, None], index, 2, [0]),
        (mask[None, None], index, 3, [0]),
    ]


@op(_samples)
def gather(x: Tensor, index: Tensor, dim: int, lead: list[int]) -> Tensor:
    """Return ``x`` with dim ``dim`` replaced by its rows at ``index``.

    ``index`` is int64 ``[*L, K]``; ``lead[i]`` is the dim of ``x`` that runs with ``L[i]``, of that
    size or 1 (then all items share the rows, and the result has the dim at full size).  The order
    of dims stays; dim ``dim`` has length K.
    """
    return gathered_rows(x, index, dim, lead)


def gathered_rows(x: Tensor, index: Tensor, dim: int, lead: list[int]) -> Tensor:
    """Gather through one index over flattened items: runtimes copy whole rows that way."""
    if not lead:
        return x.index_select(dim, index)
    moved = x.movedim([*lead, dim], list(range(len(lead) + 1)))
    rest = list(moved.shape[len(lead) + 1 :])
    rows = moved.shape[len(lead)]
    lengths = list(index.shape[:-1])
    shared = all(statically_known_true(x.shape[d] == 1) for d in lead)
    flat = index.reshape(-1)
    if not shared:
        items = lengths[0] if len(lengths) == 1 else prod(lengths)
        offset = torch.arange(items, device=index.device).unsqueeze(-1) * rows
        flat = (index.reshape(items, index.shape[-1]) + offset).reshape(-1)
        moved = moved.expand([*lengths, rows, *rest])
    picked = moved.reshape([-1, *rest]).index_select(0, flat)
    picked = picked.reshape([*index.shape, *rest])
    return picked.movedim(list(range(len(lead) + 1)), [*lead, dim]).contiguous()
