"""Writing rows to run-time positions.

The base passes, but not in the dims that are addressed: positions count its rows, so they go
nowhere while one is missing.  In all other dims base, written rows and index run together.
"""

from __future__ import annotations

from torch import fx

from tokopt.ir.axis import Axis, unify
from tokopt.ir.call import Call
from tokopt.ir.lengths import is_one, same_length
from tokopt.ir.rules import rule
from tokopt.ir.rules.index import indexed, is_mask

BASE = "has rows overwritten at run-time positions"
WRITTEN = "is written to run-time positions"
ADDED = "is added up at run-time positions"
WHERE = "says where rows are written"


@rule("index_put", "_index_put_impl", "_unsafe_index_put")
def index_put(call: Call) -> None:
    """``base[i, j] = values``; one value for all that a mask shows is written row by row."""
    base, values = call.get("self"), call.get("values")
    call.broadcast(base, call.out)
    found = indexed(call, base, call.get("indices"))
    back = found.rank - found.at
    written = call.dims(values)
    filled = len(found.given) == 1 and (len(written) < back or is_one(written[-back].length))
    target = [Axis(1) for _ in range(found.rank)]
    for dim, position in found.kept.items():
        target[position] = call.dims(base)[dim]
    for index, dims in found.given:
        for at, dim in enumerate(dims):
            if is_mask(index):
                unify(call.dims(index)[at], call.dims(base)[dim])
            if not (filled and is_mask(index)):
                call.move(base, dim, None, BASE)
        for own in range(len(call.dims(index))):
            if not (filled and is_mask(index)):
                call.move(index, own, None, WHERE)
            if not is_mask(index):
                at = found.at + found.width - len(call.dims(index)) + own
                if not is_one(call.dims(index)[own].length):
                    target[at] = call.dims(index)[own]
    call.broadcast(values, target)
    for back in range(1, len(call.dims(values)) + 1):
        if found.at <= found.rank - back < found.at + found.width:
            _place(call, values, len(call.dims(values)) - back, bool(call.get("accumulate")))


@rule("index_copy", "index_add", "index_fill", "index_reduce")
def index_copy(call: Call) -> None:
    """Rows of one dim are written at the places of a vector."""
    base, source = call.get("self"), call.get("source")
    dim = call.wrap(base, call.get("dim"))
    call.broadcast(base, call.out)
    call.move(base, dim, None, BASE)
    if call.dims(call.get("index")):
        call.move(call.get("index"), 0, None, WHERE)
    if call.is_tensor(source) and call.dims(source):
        call.link_others(source, dim)
        _place(call, source, dim, _adds(call))


@rule("scatter", "scatter_add", "scatter_reduce")
def scatter(call: Call) -> None:
    """Entries of one dim are written at the places of an index of their shape."""
    base, index, source = (call.get(name) for name in ("self", "index", "src"))
    dim = call.wrap(base, call.get("dim"))
    call.broadcast(base, call.out)
    for own in range(len(call.dims(base))):
        here, there = call.dims(base)[own], call.dims(index)[own]
        together = own != dim and same_length(here.length, there.length)
        if not together:
            call.move(base, own, None, BASE)
        for operand in (index, source):
            if not call.is_tensor(operand):
                continue
            if together and same_length(call.dims(operand)[own].length, here.length):
                call.link(operand, own, own)
            elif operand is index:
                call.move(index, own, None, WHERE)
            else:
                _place(call, source, own, _adds(call))


@rule("masked_scatter")
def masked_scatter(call: Call) -> None:
    """True entries take the source's in order; trailing dims that the mask lacks stay together."""
    base, mask, source = (call.get(name) for name in ("self", "mask", "source"))
    call.broadcast(base, call.out)
    call.broadcast(mask, call.out)
    whole = _trailing(call, base, mask, source)
    for operand, reason in ((base, BASE), (mask, WHERE), (source, WRITTEN)):
        rank = len(call.dims(operand))
        for dim in range(rank):
            if rank - dim > whole:
                call.move(operand, dim, None, reason)
            elif operand is source:
                call.link(source, dim, len(call.out) - (rank - dim))


def _trailing(call: Call, base: fx.Node, mask: fx.Node, source: fx.Node) -> int:
    """Return how many trailing dims are written as a whole."""
    count = 0
    dims = [reversed(call.dims(operand)) for operand in (base, mask, source)]
    for own, masked, new in zip(*dims, strict=False):
        if not is_one(masked.length) or not same_length(own.length, new.length):
            break
        count += 1
    return count


def _place(call: Call, operand: fx.Node, dim: int, adds: bool) -> None:
    if adds:
        call.mix(operand, dim, ADDED)
    else:
        call.move(operand, dim, None, WRITTEN)


def _adds(call: Call) -> bool:
    name = str(call.node.target)
    return "add" in name or "reduce" in name
