"""Dead code: calls whose result nobody reads."""

from __future__ import annotations

from torch import fx


def remove_dead(graph: fx.Graph) -> None:
    """Erase every call nobody uses that writes to none of its operands.

    torch's own elimination keeps ``item`` because it may raise; without the assertion that read it
    it has no purpose.
    """
    for node in reversed(list(graph.nodes)):
        schema = getattr(node.target, "_schema", None)
        pure = schema is None or not schema.is_mutable
        if node.op == "call_function" and not node.users and pure:
            graph.erase_node(node)
