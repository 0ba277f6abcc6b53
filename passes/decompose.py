"""Decompose: replace every dialect operator by its reference semantics in plain aten."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.dialect import OPS, is_dialect
from tokopt.ir.program import Program
from tokopt.ir.rebuilt import copy_graph, rebuilt
from tokopt.ir.trace import fake_mode_of, splice
from tokopt.passes.base import Pass, PassResult


def decompose(exported: ExportedProgram, keep: Collection[str] = ()) -> ExportedProgram:
    """Return the program without ``tokopt::`` calls: it runs where tokopt is not installed.

    Operators named in ``keep`` stay: those a target has kernels for.  A program that has no others
    is returned as it is.
    """
    by_target = {op.overload: op for name, op in OPS.items() if name not in keep}
    if not any(node.target in by_target for node in dialect_nodes(exported.graph)):
        return exported
    graph = copy_graph(exported.graph)
    mode = fake_mode_of(graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target in by_target:
            with graph.inserting_before(node):
                result = splice(graph, by_target[node.target].reference, node.args, mode)
            node.replace_all_uses_with(result)
            graph.erase_node(node)
    return rebuilt(exported, graph)


def dialect_nodes(graph: fx.Graph) -> list[fx.Node]:
    """Return the dialect calls of a graph."""
    return [n for n in graph.nodes if n.op == "call_function" and is_dialect(n)]


@dataclass(frozen=True)
class Decompose(Pass):
    """Replace the dialect by plain aten in every graph."""

    def run(self, program: Program) -> PassResult:
        """Return the program without dialect calls; the same one where it had none."""
        count = sum(len(dialect_nodes(e.graph)) for e in program.graphs.values())
        if not count:
            return PassResult(program, modified=False)
        graphs = {name: decompose(exported) for name, exported in program.graphs.items()}
        statistics = {"operators": count}
        return PassResult(replace(program, graphs=graphs), modified=True, statistics=statistics)
