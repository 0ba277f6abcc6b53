"""Logit scale: the constant factor from ``query @ key`` to the logits of a written-out attention.

Such an attention multiplies or divides somewhere between the product and the softmax, or has scaled
its operands before (then nothing is left to do, and the factor is 1).
"""

from __future__ import annotations

from torch import fx

from tokopt.ir.dims import arguments_of, operator_name


def logit_scale(softmax: fx.Node, product: fx.Node) -> float | None:
    """Return the factor between two nodes; None where it is not a number (a learned scale)."""
    queue: list[tuple[fx.Node, float]] = [(softmax.all_input_nodes[0], 1.0)]
    seen: set[fx.Node] = set()
    while queue:
        node, factor = queue.pop(0)
        if node is product:
            return factor * float(arguments_of(node).get("alpha", 1))
        own = _own_factor(node)
        if node.op == "call_function" and node not in seen and own is not None:
            seen.add(node)
            queue += [(operand, factor * own) for operand in node.all_input_nodes]
    return None


def _own_factor(node: fx.Node) -> float | None:
    """Return what a call multiplies its operand by; None where that is a tensor."""
    name, given = operator_name(node), arguments_of(node)
    if name not in ("aten::mul", "aten::div"):
        return 1.0
    other = given["other"]
    if isinstance(other, (int, float)):
        return float(other) if name == "aten::mul" else 1.0 / other
    return None
