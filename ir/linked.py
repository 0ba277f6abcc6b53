"""Linked: how a mark per row passes a call whose dims are linked, whatever the call computes.

A value has marks of its own shape.  Behind a call, the pieces of dims that are there before and
after keep their marks; pieces that are gone were marked alike (the channels of a row, the window
of a pool: only whole groups are marked), and new ones (features) repeat the marks.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokopt.ir.axis import Axis


def linked_marks(
    marks: Tensor, given: Sequence[Axis], wanted: Sequence[Axis], shape: Sequence[int]
) -> Tensor:
    """Return the marks of a result of ``shape`` whose dims are ``wanted``.

    ``marks`` are those of an operand whose dims are ``given``; traceable with symbolic sizes.
    """
    before, after = ([p for axis in axes for p in _pieces(axis)] for axes in (given, wanted))
    rest = list(enumerate(before))
    source: list[int | None] = []
    for piece in after:
        at = next((i for i, (_, p) in enumerate(rest) if p is piece and p.length != 1), None)
        source.append(None if at is None else rest.pop(at)[0])
    marks = marks.reshape(_sizes(marks.shape, given))
    for dim, _ in rest:
        marks = marks.narrow(dim, 0, 1)
    there = [s for s in source if s is not None]
    marks = marks.permute([*there, *(dim for dim, _ in rest)])
    marks = marks.reshape(marks.shape[: len(there)])
    for at, s in enumerate(source):
        if s is None:
            marks = marks.unsqueeze(at)
    return marks.expand(_sizes(shape, wanted)).reshape(list(shape)).contiguous()


def _pieces(axis: Axis) -> list[Axis]:
    """Return the factors of a dim; the dim itself where a symbol leaves two of them open."""
    primes = axis.primes()
    unknown = [p for p in primes if not isinstance(p.length, int)]
    return primes if len(unknown) < 2 else [axis.root]


def _sizes(shape: Sequence[int], axes: Sequence[Axis]) -> list[int]:
    """Return a shape with every dim split into the lengths of its pieces."""
    sizes: list[int] = []
    for size, axis in zip(shape, axes, strict=True):
        pieces = _pieces(axis)
        if len(pieces) == 1:
            sizes.append(size)
            continue
        known = [p.length for p in pieces if isinstance(p.length, int)]
        for length in known:
            size = size // length
        sizes += [p.length if isinstance(p.length, int) else size for p in pieces]
    return sizes
