"""Stream: a value that carries a stack's rows, seen as ``[B, N, C]``.

A stream value may be ``[B, N, C]``, ``[N, B, C]``, ``[N, C]`` or flattened to ``[B*N, C]``.  The
axes say which dim is which.
"""

from __future__ import annotations

from torch import Tensor, fx

from tokopt.ir.axis import Axis, locate
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.layout import lead_axes, unfolded


def stack_lead(facts: Facts, stack: TokenStack) -> tuple[Axis, ...]:
    """Return the batch axes of a stack's stream."""
    entry = stack.stack.layers[0].entry
    return lead_axes(facts.dims.axes[entry], stack.stack.dim, stack.tokens)


def as_rows(tensor: Tensor, node: fx.Node, facts: Facts, stack: TokenStack) -> Tensor:
    """Return the value of ``node``, one that carries the stack's rows, as ``[B, N, C]``.

    Batch axes are flattened to B (1 where the value has none), all other dims to C.
    """
    lead, tokens = stack_lead(facts, stack), stack.tokens
    factors: list[Axis] = []
    sizes: list[int] = []
    for dim, axis in enumerate(facts.dims.axes[node]):
        parts = unfolded(axis, list(lead), tokens)
        factors += parts
        known = [p.length if isinstance(p.length, int) else -1 for p in parts]
        sizes += known if len(parts) > 1 else [tensor.shape[dim]]
    rows = [i for i, axis in enumerate(factors) if locate(axis, tokens) is not None]
    if len(rows) != 1 or sizes.count(-1) > 1:
        raise UnsupportedError("a value does not carry its rows in one dim", where=node.name)
    batch = [factors.index(axis) for axis in lead if axis in factors]
    rest = [i for i in range(len(factors)) if i not in (*rows, *batch)]
    ordered = tensor.reshape(sizes).permute([*batch, *rows, *rest])
    if len(batch) != 1:
        ordered = ordered.flatten(0, len(batch) - 1) if batch else ordered.unsqueeze(0)
    return ordered.flatten(2) if rest else ordered.unsqueeze(2)
