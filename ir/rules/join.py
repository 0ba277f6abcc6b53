"""Joins: rows one after the other, and new dims that count operands."""

from __future__ import annotations

from torch import fx

from tokopt.ir.axis import align_parts, unify
from tokopt.ir.call import Call
from tokopt.ir.rules import rule


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> None:
    """Rows one after the other; rows from parameters alone beside others are marked learned."""
    operands = [n for n in call.get("tensors") if call.dims(n) and not _is_empty(call, n)]
    dim = call.get("dim", 0) % len(call.out)
    beside_data = any(n not in call.learned for n in operands)
    for operand in operands:
        call.link_others(operand, dim)
        if beside_data and operand in call.learned:
            call.dims(operand)[dim].root.learned = True
    joined = [call.dims(n)[dim] for n in operands]
    if len(joined) == 1:
        unify(joined[0], call.out[dim])
    elif call.out[dim].root.parts:
        align_parts(joined, [call.out[dim]])
    else:
        call.out[dim].root.parts = joined


def _is_empty(call: Call, node: fx.Node) -> bool:
    return any(isinstance(a.length, int) and a.length == 0 for a in call.dims(node))


@rule("stack")
def stack(call: Call) -> None:
    """A new dim counts the operands."""
    dim = call.get("dim", 0) % len(call.out)
    call.repeat(dim)
    for operand in call.tensors():
        for d in range(len(call.dims(operand))):
            call.link(operand, d, d + (d >= dim))


@rule("meshgrid")
def meshgrid(call: Call) -> None:
    """Operand i runs along dim i of every output (dims 0 and 1 swapped for ``xy``)."""
    operands = list(call.get("tensors"))
    order = list(range(len(operands)))
    if call.get("indexing") == "xy" and len(order) > 1:
        order[0], order[1] = 1, 0
    for which in range(len(call.outs)):
        for i, operand in enumerate(operands):
            if call.dims(operand):
                call.link(operand, 0, order[i], which)
