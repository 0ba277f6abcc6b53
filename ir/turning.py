"""Turning: which channels of a key a rotary embedding turns into each other, seen in the graph.

A rotation of two channels has a minus in it, and in front of that the channels are told apart: as
the halves of a head's first channels, as every second one, or as the two parts of a complex number.
Su et al., arXiv 2104.09864, eq. 34.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError

aten = torch.ops.aten
ENDS = frozenset(
    getattr(aten, name).default
    for name in "linear addmm mm bmm matmul embedding layer_norm rms_norm cos sin".split()
)
"""Where keys are made, or the angles: nothing in front of them turns a key."""

MINUS = frozenset({aten.neg.default, aten.sub.Tensor, aten.rsub.Tensor})
SPLITS = frozenset({aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default})


@dataclass(frozen=True)
class Turning:
    """The first ``width`` channels turn, in pairs of halves or, ``interleaved``, of neighbours."""

    width: int
    interleaved: bool


@dataclass(frozen=True)
class Piece:
    """Channels ``of`` a value: the ``first``, every how many-th, and how many they are."""

    of: fx.Node
    first: int
    step: int
    size: int


def find_turning(rows: fx.Node) -> Turning | None:
    """Return how rows ``[B, H, T, D]`` were turned by their positions; None where they were not.

    Raises ``UnsupportedError`` where a sign was changed in a way that is not known.
    """
    behind = list(_behind(rows))
    pieces = {piece for node in behind if (piece := _piece(node)) is not None}
    unknown = None
    for node in behind:
        if node.target is aten.view_as_complex.default:
            return Turning(2 * int(node.meta["val"].shape[-1]), True)
        if node.target in MINUS:
            nearest = (piece for one in _behind(node) if (piece := _piece(one)) is not None)
            found = next((turning for p in nearest if (turning := _pair(p, pieces))), None)
            if found is not None:
                return found
            unknown = unknown or (node if node.target is aten.neg.default else None)
    if unknown is not None:
        raise UnsupportedError(
            "keys are turned by their positions in a way that is not known",
            where=describe(unknown),
            expected="halves of a head, or neighbouring channels, that change places",
        )
    return None


def _behind(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what a value is computed of, nearest first, back to where it is projected."""
    queue, seen = [node], set[fx.Node]()
    while queue:
        current = queue.pop(0)
        if current in seen or current.op != "call_function":
            continue
        seen.add(current)
        yield current
        if current.target not in ENDS:
            queue += current.all_input_nodes


def _pair(piece: Piece, pieces: Collection[Piece]) -> Turning | None:
    """Return what turns if a piece does, as one half of its value or as every second channel."""
    if piece.step == 2:
        return Turning(int(piece.of.meta["val"].shape[-1]), True)
    other = replace(piece, first=piece.size - piece.first)
    halves = piece.first in (0, piece.size) and piece.step == 1
    return Turning(2 * piece.size, False) if halves and other in pieces else None


def _piece(node: fx.Node) -> Piece | None:
    given: Any = node.args
    if node.target is aten.slice.Tensor:
        dim, step = (given[1] if len(given) > 1 else 0), (given[4] if len(given) > 4 else 1)
        first = (given[2] if len(given) > 2 else None) or 0
        value = node.meta["val"]
        if dim % value.ndim != value.ndim - 1 or not isinstance(first, int):
            return None
        return Piece(given[0], first, step, int(value.shape[-1]))
    if node.target is operator.getitem and given[0].target in SPLITS:
        sizes = [int(one.shape[-1]) for one in given[0].meta["val"]]
        return Piece(given[0], sum(sizes[: given[1]]), 1, sizes[given[1]])
    return None
