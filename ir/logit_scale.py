"""Logit scale: the constant factor from ``query @ key`` to an attention's logits.

Fused attention says it; written-out attention multiplies or divides by it somewhere between the
product and the softmax, or has scaled its operands before (then nothing is left to do).
"""

from __future__ import annotations

from torch import fx

from tokopt.ir.attention import PASSING, Attention
from tokopt.ir.dims import arguments_of, operator_name


def logit_scale(attention: Attention) -> float:
    """Return the factor; ``1/sqrt(d)`` where it is not a number in the graph (a learned scale)."""
    default = float(attention.query.meta["val"].shape[-1]) ** -0.5
    if attention.fused:
        return default if attention.scale is None else float(attention.scale)
    queue = [(attention.node.all_input_nodes[0], 1.0)]
    while queue:
        node, factor = queue.pop(0)
        if {attention.query, attention.key} <= set(node.all_input_nodes):
            return factor * float(arguments_of(node).get("alpha", 1))
        if node.op != "call_function" or operator_name(node) not in PASSING:
            continue
        own = _own_factor(node)
        if own is not None:
            queue += [(operand, factor * own) for operand in node.all_input_nodes]
    return default


def _own_factor(node: fx.Node) -> float | None:
    """Return what a call multiplies its operand by; None where that is a learned tensor."""
    name, given = operator_name(node), arguments_of(node)
    if name not in ("aten::mul", "aten::div"):
        return 1.0
    other = given["other"]
    if isinstance(other, (int, float)):
        return float(other) if name == "aten::mul" else 1.0 / other
    return None
