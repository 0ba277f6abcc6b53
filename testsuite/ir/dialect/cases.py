"""Calls beyond the operators' own samples: lead dims, layouts, dtypes, ties, odd scores."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

INF, NAN = math.inf, math.nan


def rows(kept: int, of: int, *lead: int) -> Tensor:
    """Ascending indices ``[*lead, kept]``, different in every item."""
    noise = torch.rand(*lead, of, generator=torch.Generator().manual_seed(kept * of))
    return noise.argsort(-1)[..., :kept].sort(-1)[0]


def numbers(*shape: int) -> Tensor:
    return torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)


GATHER: dict[str, tuple[Any, ...]] = {
    "rows of items": (numbers(2, 5, 3), rows(3, 5, 2), 1, [0]),
    "rows without a batch": (numbers(5, 3), rows(2, 5), 0, []),
    "batch second": (numbers(5, 2, 3), rows(3, 5, 2), 0, [1]),
    "batch second, heads": (numbers(5, 2, 3, 4), rows(3, 5, 2), 0, [1]),
    "last dim": (numbers(2, 4, 5), rows(3, 5, 2), 2, [0]),
    "two lead dims": (numbers(2, 3, 5, 4), rows(2, 5, 2, 3), 2, [0, 1]),
    "two lead dims, turned": (numbers(3, 5, 2, 4), rows(2, 5, 2, 3), 1, [2, 0]),
    "two lead dims behind the rows": (numbers(5, 3, 2), rows(2, 5, 2, 3), 0, [2, 1]),
    "shared by all items": (numbers(1, 5, 3), rows(3, 5, 2), 1, [0]),
    "shared by the items of one lead": (numbers(2, 1, 5), rows(2, 5, 2, 3), 2, [0, 1]),
    "shared by all of two leads": (numbers(1, 1, 5, 2), rows(2, 5, 2, 3), 2, [0, 1]),
    "one item": (numbers(1, 5, 3), rows(3, 5, 1), 1, [0]),
    "a mask": (numbers(2, 1, 5, 5) % 3 == 0, rows(2, 5, 2), 3, [0]),
    "a shared mask": (numbers(1, 1, 5, 5) % 3 == 0, rows(2, 5, 2), 2, [0]),
    "ids": (numbers(2, 5).long(), rows(2, 5, 2), 1, [0]),
    "all rows": (numbers(2, 5, 3), rows(5, 5, 2), 1, [0]),
    "not ascending, repeated": (numbers(2, 5, 3), torch.tensor([[4, 4, 0], [3, 0, 1]]), 1, [0]),
    "a strided operand": (numbers(3, 5, 2).permute(2, 1, 0), rows(3, 5, 2), 1, [0]),
}

SINES = numbers(2, 4, 5, 6).sin()
ATTENTION_ROWS: dict[str, tuple[Any, ...]] = {
    "a head of keys for each": (SINES[:, :, :1], SINES, None, 0.4),
    "one head of keys for all": (SINES, SINES[:, 1:2], None, 0.4),
    "a bias for each query": (SINES, SINES, numbers(5, 5).cos(), 0.4),
    "minus infinity": (SINES, SINES, torch.where(numbers(5) < 3, -INF, 0.0), 0.4),
    "nothing to read": (SINES, SINES, torch.full((2, 1, 1, 5), -INF), 0.4),
    "large logits": (SINES * 100, SINES * 100, None, 1.0),
    "a strided operand": (SINES.transpose(1, 2), SINES.transpose(1, 2), None, 0.4),
}

RESTORE: dict[str, tuple[Any, ...]] = {
    "rows of items": (numbers(2, 3, 4), rows(3, 5, 2), 5, 1, [0]),
    "rows without a batch": (numbers(2, 3), rows(2, 5), 5, 0, []),
    "batch second": (numbers(3, 2, 4), rows(3, 5, 2), 5, 0, [1]),
    "last dim": (numbers(2, 4, 3), rows(3, 5, 2), 5, 2, [0]),
    "two lead dims": (numbers(2, 3, 2, 4), rows(2, 5, 2, 3), 5, 2, [0, 1]),
    "two lead dims, turned": (numbers(3, 2, 2, 4), rows(2, 5, 2, 3), 5, 1, [2, 0]),
    "two lead dims behind the rows": (numbers(2, 3, 2), rows(2, 5, 2, 3), 5, 0, [2, 1]),
    "one item": (numbers(1, 3, 4), rows(3, 5, 1), 5, 1, [0]),
    "a mask": (numbers(2, 3) % 2 == 0, rows(3, 5, 2), 5, 1, [0]),
    "ids": (numbers(2, 3).long(), rows(3, 5, 2), 5, 1, [0]),
    "all rows": (numbers(2, 5, 4), rows(5, 5, 2), 5, 1, [0]),
}


def _free(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.bool)


ODD = torch.tensor([[NAN, 1.0, -INF, NAN, 2.0, INF], [INF, NAN, 0.0, -0.0, -INF, 3e38]])

SELECT: dict[str, tuple[Any, ...]] = {
    "ties": (torch.tensor([[1.0, 2, 2, 2, 0, 2], [0, 0, 0, 0, 0, 0]]), _free(2, 6), 3),
    "odd scores, few": (ODD, _free(2, 6), 2),
    "odd scores, many": (ODD, _free(2, 6), 4),
    "odd scores, all but one": (ODD, _free(2, 6), 5),
    "zeros of both signs": (torch.tensor([-0.0, 0.0, -0.0, 0.0]), _free(4), 2),
    "protected rows of odd scores": (ODD, torch.tensor([False, True, True, True, True, False]
                                                       ).expand(2, 6).clone(), 4),
    "other rows protected in each item": (ODD, torch.tensor([[1, 1, 0, 1, 1, 0],
                                                             [0, 0, 1, 1, 1, 1]]).bool(), 3),
    "nothing but the protected": (ODD, torch.tensor([[1, 1, 0, 1, 1, 0],
                                                     [0, 0, 1, 1, 1, 1]]).bool(), 2),
    "all": (ODD, _free(2, 6), 6),
    "no batch": (torch.tensor([3.0, 1, 2]), _free(3), 1),
    "two lead dims": (numbers(2, 3, 4).sin(), _free(2, 3, 4), 2),
}  # fmt: skip

STEPS = torch.arange(2 * 2 * 5 * 8).reshape(2, 2, 5, 8)
PAIRS = ((STEPS * 37) % 256).to(torch.uint8)[..., :4]
BYTES = ((STEPS * 37) % 256 - 128).to(torch.int8)
ROW = numbers(2, 2, 1, 8).cos()
SIDES = (numbers(1, 2, 1, 8).sin().abs() / 60, numbers(1, 2, 1, 8).cos()) * 2

CACHED: dict[str, tuple[Any, ...]] = {
    "groups of three": (numbers(2, 6, 1, 8).sin(), ROW, -ROW, BYTES, PAIRS, *SIDES, None, 0.5),
    "a bias for each head": (
        *(numbers(2, 4, 1, 8).sin(), ROW, -ROW, PAIRS, PAIRS, *SIDES),
        *(numbers(1, 4, 1, 5).cos(), 0.5),
    ),
    "minus infinity": (
        *(numbers(2, 2, 1, 8).sin(), ROW, -ROW, BYTES, BYTES, *SIDES),
        *(torch.where(numbers(1, 1, 1, 5) < 3, -INF, 0.0), 0.5),
    ),
    "nothing stored yet": (
        *(numbers(2, 2, 1, 8).sin(), ROW, -ROW, BYTES[:, :, :1], BYTES[:, :, :1], *SIDES),
        *(None, 0.5),
    ),
}

EVERY_BYTE = (STEPS * 37 + STEPS // 7) % 256
E4M3 = EVERY_BYTE.where(EVERY_BYTE % 128 != 127, 0).to(torch.uint8).view(torch.float8_e4m3fn)

FP8: dict[str, tuple[Any, ...]] = {
    "E4M3": (numbers(2, 4, 1, 8).sin(), ROW, -ROW, E4M3, E4M3.flip(2), *SIDES, None, 0.02),
    "E4M3 and pairs": (numbers(2, 2, 1, 8).sin(), ROW, ROW, E4M3, PAIRS, *SIDES, None, 0.02),
}
"""Of ``cached_attention``, where ONNX Runtime takes no operand of the type."""

FIVE = numbers(2, 5, 4).sin()
TO = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0]])
EACH = torch.ones(2, 5)

SEGMENTED: dict[str, tuple[Any, ...]] = {
    "one segment has all, one none": (FIVE, TO, EACH, 2),
    "one row each": (FIVE, torch.tensor([[4, 3, 2, 1, 0]] * 2), EACH * 7, 5),
    "rows of no segment": (FIVE, TO.masked_fill(TO == 0, -1), EACH, 2),
    "targets beyond": (FIVE, TO + 1, EACH, 2),
    "weights of all sizes": (FIVE, TO, numbers(2, 5).cos().abs() ** 9 * 1e-3, 3),
    "halves": (FIVE.half(), TO, EACH / 3, 2),
    "strided operands": (FIVE.transpose(1, 2), TO.T[:4, :1].T.expand(2, 4), EACH.T[:4].T, 2),
}

CASES = {
    "attention_rows": ATTENTION_ROWS,
    "cached_attention": CACHED | FP8,
    "gather": GATHER,
    "restore": RESTORE,
    "segmented_mean": SEGMENTED,
    "select": SELECT,
}
