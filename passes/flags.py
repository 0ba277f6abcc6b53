"""Flags: how a mark per row passes a call whose dims are linked, whatever the call computes.

A value has flags of its own shape.  Behind a call, the pieces of dims that are there before and
after keep their flags; pieces that are gone were the same all along (the channels of a row, the
window of a pool: holes are whole groups), and new ones (features) repeat them.
"""

from __future__ import annotations

from torch import Tensor, fx

from tokopt.ir.axis import Axis
from tokopt.passes.workspace import Workspace


def passed_flags(work: Workspace, node: fx.Node, operand: fx.Node, flags: fx.Node) -> fx.Node:
    """Insert the flags of a call's result from those of one operand, in the result's shape."""
    given = [_pieces(axis) for axis in work.axes[operand]]
    wanted = [_pieces(axis) for axis in work.axes[node]]
    before, after = ([p for dim in dims for p in dim] for dims in (given, wanted))
    rest = list(enumerate(before))
    source: list[int | None] = []
    for piece in after:
        at = next((i for i, (_, p) in enumerate(rest) if p is piece and p.length != 1), None)
        source.append(None if at is None else rest.pop(at)[0])

    def carry(value: Tensor, *shape: int) -> Tensor:
        value = value.reshape(_sizes(value.shape, given))
        for dim, _ in rest:
            value = value.narrow(dim, 0, 1)
        there = [s for s in source if s is not None]
        value = value.permute([*there, *(dim for dim, _ in rest)])
        value = value.reshape(value.shape[: len(there)])
        for at, s in enumerate(source):
            if s is None:
                value = value.unsqueeze(at)
        return value.expand(_sizes(shape, wanted)).reshape(shape).contiguous()

    sizes = [work.size(node, dim) for dim in range(len(wanted))]
    return work.splice(carry, [flags, *sizes])  # type: ignore[no-any-return]


def _pieces(axis: Axis) -> list[Axis]:
    """Return the factors of a dim; the dim itself where a symbol leaves two of them open."""
    primes = axis.primes()
    unknown = [p for p in primes if not isinstance(p.length, int)]
    return primes if len(unknown) < 2 and len(primes) > 0 else [axis.root]


def _sizes(shape: object, dims: list[list[Axis]]) -> list[int]:
    """Return a shape with every dim split into the lengths of its pieces."""
    sizes: list[int] = []
    for size, pieces in zip(shape, dims, strict=True):  # type: ignore[call-overload]
        known = 1
        for piece in pieces if len(pieces) > 1 else ():
            known *= piece.length if isinstance(piece.length, int) else 1
        for piece in pieces:
            is_known = len(pieces) > 1 and isinstance(piece.length, int)
            sizes.append(piece.length if is_known else size // known)  # type: ignore[arg-type]
    return sizes
