"""Rows of an axis's pieces inside a dim: parts lie one after the other, factors are nested."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from tokopt.ir.axis import Axis


def inside(axis: Axis) -> Iterator[Axis]:
    """Yield the axis and every piece of it."""
    root = axis.root
    yield root
    for piece in (*root.parts, *root.factors):
        yield from inside(piece)


def count(axis: Axis) -> int:
    length = axis.root.length
    assert isinstance(length, int)
    return length


def places(axis: Axis, piece: Axis) -> Tensor:
    """Return for each row of a dim which row of ``piece`` it belongs to, -1 where to none."""
    root = axis.root
    if root is piece.root:
        return torch.arange(count(root))
    found = torch.full((count(root),), -1)
    for part, at in zip(root.parts, _offsets(root.parts), strict=True):
        inner = places(part, piece)
        found[at : at + len(inner)] = torch.maximum(found[at : at + len(inner)], inner)
    lengths = [count(f) for f in root.factors]
    for index, factor in enumerate(root.factors):
        inner = places(factor, piece).repeat_interleave(prod(lengths[index + 1 :]))
        found = torch.maximum(found, inner.repeat(prod(lengths[:index])))
    return found


def permuted(axis: Axis, piece: Axis, order: Tensor) -> Tensor:
    """Return the order of a dim's rows once the rows of a piece of it are put in ``order``."""
    root = axis.root
    if root is piece.root:
        return order
    rows = torch.arange(count(root))
    if not any(found is piece.root for found in inside(root)):
        return rows
    for part, at in zip(root.parts, _offsets(root.parts), strict=True):
        rows[at : at + count(part)] = at + permuted(part, piece, order)
    if root.factors:
        grid = torch.arange(count(root)).reshape([count(f) for f in root.factors])
        for dim, factor in enumerate(root.factors):
            grid = grid.index_select(dim, permuted(factor, piece, order))
        rows = rows[grid.flatten()] if not root.parts else rows
    return rows


def _offsets(parts: list[Axis]) -> list[int]:
    return [sum(count(p) for p in parts[:i]) for i in range(len(parts))]
