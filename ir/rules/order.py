"""Order by value: sorting, and differences of neighbours."""

from __future__ import annotations

from tokopt.ir.call import Call
from tokopt.ir.rules import rule


@rule("sort", "argsort", "topk", "msort", "kthvalue")
def sort(call: Call) -> None:
    """One dim's rows are put in the order of their values; the others pass.

    Which row goes where depends on every row, so a row that is absent is not as good as masked.
    """
    operand = call.tensors()[0]
    first = str(call.node.target).startswith("aten.msort")
    dim = call.wrap(operand, call.get("dim", 0 if first else -1))
    for which, axes in enumerate(call.outs):
        for other in range(len(call.dims(operand))):
            if other != dim:
                gone = other > dim and len(axes) < len(call.dims(operand))
                call.link(operand, other, other - gone, which)
    if call.dims(operand):
        call.mix(operand, dim, "sorts rows by value")


@rule("diff")
def diff(call: Call) -> None:
    """Neighbouring rows are subtracted."""
    dim = call.wrap(call.get("self"), call.get("dim", -1))
    for operand in call.tensors():
        call.link_others(operand, dim)
        call.mix(operand, dim, "subtracts neighbouring rows")
