"""Decompose: replace every dialect operator by its reference semantics in plain aten."""

from __future__ import annotations

from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.dialect import OPS, is_dialect
from tokopt.ir.trace import fake_mode_of, splice
from tokopt.passes.workspace import copy_graph, rebuilt


def decompose(exported: ExportedProgram) -> ExportedProgram:
    """Return the program without ``tokopt::`` calls: it runs where tokopt is not installed."""
    module = copy_graph(exported.graph_module)
    mode = fake_mode_of(module.graph)
    by_target = {op.overload: op for op in OPS.values()}
    for node in list(module.graph.nodes):
        if node.op == "call_function" and is_dialect(node):
            with module.graph.inserting_before(node):
                result = splice(module.graph, by_target[node.target].reference, node.args, mode)
            node.replace_all_uses_with(result)
            module.graph.erase_node(node)
    return rebuilt(exported, module)


def dialect_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the dialect calls of a graph."""
    return [n for n in graph.nodes if n.op == "call_function" and is_dialect(n)]
