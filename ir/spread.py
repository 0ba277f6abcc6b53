"""Spread: streams whose rows lie on several dims, ``[batch, height, width, features]``.

Every attention of such a model flattens height and width itself.  Rows can only leave along one
dim, so there is no stack; this says why.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import fx

from tokopt.ir.attention import Attention
from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims
from tokopt.ir.layers import enclosing
from tokopt.ir.lengths import is_one


def spread_stream(
    attentions: Sequence[Attention], dims: Dims, dependence: Dependence
) -> fx.Node | None:
    """Return the first stream value that holds an attention's rows on several dims, if any does."""
    joins = [(j, s, b) for j, s, b in dependence.skip_connections() if j in dims.axes]
    for attention in attentions:
        block = enclosing(attention.query, attention.out, joins, dependence)
        rows = set(map(id, attention.queries.primes()))
        if block is None or len(rows) < 2:
            continue
        axes = [axis for axis in dims.axes[block.entry] if not is_one(axis.length)]
        along = [{id(prime) for prime in axis.primes()} for axis in axes]
        found = [primes for primes in along if primes <= rows]
        if len(found) > 1 and set().union(*found) == rows:
            return block.entry
    return None
