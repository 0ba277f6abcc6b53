"""Stream: which dims of a stack's values are batch, rows and features.

A stream value may be ``[B, N, C]``, ``[N, B, C]``, ``[N, C]`` or flattened to ``[B*N, C]``.  The
axes say which is which; whoever reads taps (observer, rewriter, oracle) sees ``[B, N, …]``.
"""

from __future__ import annotations

from torch import Tensor, fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.lengths import is_one


def lead_axes(facts: Facts, stack: TokenStack) -> tuple[Axis, ...]:
    """Return the batch axes of a stack's stream, outer first; none where it has no batch.

    They are the axes of the entry value's dims other than the token dim and the last dim, and the
    factors beside the rows where the token dim is a product (a flattened ``[B*N, C]``); dims of
    length 1 do not count.
    """
    entry = stack.stack.layers[0].entry
    found: list[Axis] = []
    for dim, axis in enumerate(facts.dims.axes[entry]):
        if dim == stack.stack.dim:
            found += [f for f in _factors(axis, stack) if f is not row_axis(stack)]
        elif dim != len(facts.dims.axes[entry]) - 1:
            found.append(axis.root)
    return tuple(axis for axis in found if not is_one(axis.length))


def row_axis(stack: TokenStack) -> Axis:
    """Return the axis that counts the rows of one batch item: the stream, or a factor of it.

    It is a factor where attention runs along one: ``B*N`` rows whose keys are the ``N``.
    """
    stream = stack.stack.stream.root
    for layer in stack.stack.layers:
        for attention in layer.attention:
            place = locate(stream, attention.keys)
            if place is not None and all(kind == "*" for kind, _, _ in place.path):
                return attention.keys.root
    return stream


def as_rows(tensor: Tensor, node: fx.Node, facts: Facts, stack: TokenStack) -> Tensor:
    """Return the value of ``node``, one that carries the stack's rows, as ``[B, N, C]``.

    Batch axes are flattened to B (1 where the value has none), all other dims to C.
    """
    rows, lead = row_axis(stack), lead_axes(facts, stack)
    factors: list[Axis] = []
    sizes: list[int] = []
    for dim, axis in enumerate(facts.dims.axes[node]):
        parts = _factors(axis, stack)
        factors += parts
        known = [-1 if not isinstance(p.length, int) else p.length for p in parts]
        sizes += known if len(parts) > 1 else [tensor.shape[dim]]
    places = [i for i, axis in enumerate(factors) if axis is rows]
    if len(places) != 1 or sizes.count(-1) > 1:
        raise UnsupportedError(
            "a value of the stack does not carry its rows in one dim", where=node.name
        )
    batch = [factors.index(axis) for axis in lead if axis in factors]
    rest = [i for i in range(len(factors)) if i != places[0] and i not in batch]
    ordered = tensor.reshape(sizes).permute([*batch, *places, *rest])
    if len(batch) != 1:
        ordered = ordered.flatten(0, len(batch) - 1) if batch else ordered.unsqueeze(0)
    return ordered.flatten(2) if rest else ordered.unsqueeze(2)


def _factors(axis: Axis, stack: TokenStack) -> list[Axis]:
    """Return the factors of the stream's axis beside its rows, or the axis itself."""
    rows = row_axis(stack)
    place = locate(axis, rows)
    if axis.root is not stack.stack.stream.root or place is None:
        return [axis.root]
    found = [axis.root]
    for _, children, index in place.path:
        at = next(i for i, a in enumerate(found) if locate(a, rows) is not None)
        found[at : at + 1] = children
        assert children[index] is found[at + index]
    return [a for a in found if a is rows or not is_one(a.length)]
