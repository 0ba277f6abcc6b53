"""Decompose: replace every dialect operator by its reference semantics in plain aten."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.dialect import OPS, is_dialect
from tokopt.ir.program import Program
from tokopt.ir.rebuilt import copy_graph, rebuilt
from tokopt.ir.trace import fake_mode_of, splice
from tokopt.passes.base import Pass, PassResult


def decompose(exported: ExportedProgram) -> ExportedProgram:
    """Return the program without ``tokopt::`` calls: it runs where tokopt is not installed."""
    graph = copy_graph(exported.graph)
    mode = fake_mode_of(graph)
    by_target = {op.overload: op for op in OPS.values()}
    for node in list(graph.nodes):
        if node.op == "call_function" and is_dialect(node):
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
        counts = {n: len(dialect_nodes(e.graph)) for n, e in program.graphs.items()}
        if not any(counts.values()):
            return PassResult(program, modified=False)
        graphs = {n: decompose(e) if counts[n] else e for n, e in program.graphs.items()}
        statistics = {"operators": sum(counts.values())}
        return PassResult(replace(program, graphs=graphs), modified=True, statistics=statistics)
