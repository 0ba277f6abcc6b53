"""What the dialect's operators mean, entry by entry, in numpy."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor


def gathered(x: Tensor, index: Tensor, dim: int, lead: list[int]) -> np.ndarray:
    source, rows = x.numpy(), index.numpy()
    shape = list(source.shape)
    shape[dim] = rows.shape[-1]
    for position, d in enumerate(lead):
        shape[d] = rows.shape[position]
    out = np.zeros(shape, source.dtype)
    for place in product(*map(range, shape)):
        here = list(place)
        here[dim] = rows[(*(place[d] for d in lead), place[dim])]
        for d in lead:
            here[d] = min(here[d], source.shape[d] - 1)  # size 1: shared by all items
        out[place] = source[tuple(here)]
    return out


def attended(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> np.ndarray:
    asked, keys = query.double().numpy(), key.double().numpy()
    items, heads, rows, _ = asked.shape
    out = np.zeros((items, heads, rows, keys.shape[2]))
    extra = np.zeros(()) if bias is None else bias.double().numpy()
    extra = np.broadcast_to(extra, out.shape)
    for item, head, row in product(range(items), range(heads), range(rows)):
        own = keys[item, head * keys.shape[1] // heads]
        logits = [float(asked[item, head, row] @ one) * scale for one in own]
        lowest = float(np.finfo(np.float32).min)
        shown = [max(v + e, lowest) for v, e in zip(logits, extra[item, head, row], strict=True)]
        weights = np.exp(np.array(shown) - max(shown))
        out[item, head, row] = weights / weights.sum()
    return out


def restored(x: Tensor, index: Tensor, length: int, dim: int, lead: list[int]) -> np.ndarray:
    source, rows = x.numpy(), index.numpy()
    shape = list(source.shape)
    shape[dim] = length
    out = np.zeros(shape, source.dtype)
    for place in product(*map(range, source.shape)):
        there = list(place)
        there[dim] = rows[(*(place[d] for d in lead), place[dim])]
        out[tuple(there)] = source[place]
    return out


def averaged(values: Tensor, target: Tensor, weight: Tensor, count: int) -> np.ndarray:
    rows, own, counts = values.double().numpy(), target.numpy(), weight.double().numpy()
    out = np.zeros((len(rows), count, rows.shape[2]))
    for item, segment in product(range(len(rows)), range(count)):
        members = [n for n in range(rows.shape[1]) if own[item, n] == segment and counts[item, n]]
        if members:
            out[item, segment] = np.average(rows[item, members], 0, counts[item, members])
    return out


def selected(scores: Tensor, candidates: Tensor, total: int) -> np.ndarray:
    values, free = scores.numpy(), candidates.numpy()
    out = np.zeros((*values.shape[:-1], total), np.int64)
    for item in product(*map(range, values.shape[:-1])):
        rows = range(values.shape[-1])
        stay = [n for n in rows if not free[item][n]]
        ranked = sorted(
            (n for n in rows if free[item][n]), key=lambda n: (*_low(values[item][n]), n)
        )
        out[item] = sorted(stay + ranked[: total - len(stay)])
    return out


def _low(score: float) -> tuple[bool, float]:
    return (True, 0.0) if math.isnan(score) else (False, -float(score))


def cached(*args: Any) -> np.ndarray:
    """Attend row by row over codes read one by one; ``args`` as the operator's."""
    query, key, value, keys, values, *constants, bias, scale = args
    new = key.shape[2]
    whole = [
        np.concatenate([_rows(codes, *pair)[:, :, : codes.shape[2] - new], exact.double()], 2)
        for codes, exact, pair in (
            (keys, key, constants[:2]),
            (values, value, constants[2:]),
        )
    ]
    weights = attended(query, torch.from_numpy(whole[0]), bias, scale)
    out = np.zeros(query.shape)
    for item, head, row in product(*map(range, query.shape[:3])):
        own = whole[1][item, head * key.shape[1] // query.shape[1]]
        out[item, head, row] = sum(
            w * one for w, one in zip(weights[item, head, row], own, strict=True)
        )
    return out


def _rows(codes: Tensor, scale: Tensor, centre: Tensor) -> np.ndarray:
    shape = (*codes.shape[:3], scale.shape[3])
    out = np.zeros(shape)
    for item, head, row, place in product(*map(range, shape)):
        step: float
        if codes.dtype == torch.int8:
            step = int(codes[item, head, row, place])
        elif codes.dtype == torch.float8_e4m3fn:
            step = _e4m3(int(codes.view(torch.uint8)[item, head, row, place]))
        else:
            both = int(codes[item, head, row, place // 2])
            step = (both >> 4 if place % 2 else both & 15) - 8
        out[item, head, row, place] = step * float(scale[0, head, 0, place])
        out[item, head, row, place] += float(centre[0, head, 0, place])
    return out


def _e4m3(byte: int) -> float:
    """Read a sign, four bits of exponent, three of fraction; OCP 8-bit floating point, 5.1."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    size = (1 + fraction / 8) * 2.0 ** (exponent - 7) if exponent else fraction / 8 * 2.0**-6
    return -size if byte & 128 else size
