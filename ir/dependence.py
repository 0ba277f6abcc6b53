"""The dependence graph: a networkx DiGraph over a program's nodes, with fast reachability."""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from functools import cached_property

import networkx as nx
import torch
from torch import fx

ADDITIONS = frozenset({"aten::add"})
SAME_VALUE = frozenset(
    {"aten::to", "aten::_to_copy", "aten::clone", "aten::dropout", "aten::detach"}
)


class Dependence:
    """Who depends on whom.  ``graph`` has an edge from each operand to each of its users."""

    def __init__(self, graph: fx.Graph) -> None:
        self.order = {node: i for i, node in enumerate(graph.nodes)}
        self.graph = nx.DiGraph()
        self.graph.add_nodes_from(self.order)
        self.graph.add_edges_from((a, n) for n in self.order for a in n.all_input_nodes)

    @cached_property
    def _ancestors(self) -> dict[fx.Node, int]:
        """Each node's ancestors, itself included, as a bit set over the graph's order."""
        bits: dict[fx.Node, int] = {}
        for node, index in self.order.items():  # fx keeps nodes in topological order
            mask = 1 << index
            for operand in node.all_input_nodes:
                mask |= bits[operand]
            bits[node] = mask
        return bits

    def reaches(self, source: fx.Node, target: fx.Node) -> bool:
        """Return whether ``target`` is ``source`` or depends on it."""
        return bool(self._ancestors[target] >> self.order[source] & 1)

    def common_ancestors(self, *nodes: fx.Node) -> Iterator[fx.Node]:
        """Yield what all nodes are or depend on, the last in graph order first."""
        common = -1
        for node in nodes:
            common &= self._ancestors[node]
        while common:
            index = common.bit_length() - 1
            yield self._nodes[index]
            common ^= 1 << index

    def reached(self, sources: list[fx.Node], barred: AbstractSet[fx.Node]) -> set[fx.Node]:
        """Return the sources and all values that depend on them by ways around ``barred`` nodes.

        Sizes carry no values: what only has the size of a source does not depend on it.
        """
        found = set(sources)
        for node in self.order:
            size = isinstance(node.meta.get("val"), (int, torch.SymInt))
            if not size and node not in barred and any(a in found for a in node.all_input_nodes):
                found.add(node)
        return found

    @cached_property
    def _nodes(self) -> list[fx.Node]:
        return list(self.order)

    def dominators(self, source: fx.Node) -> dict[fx.Node, fx.Node]:
        """Return the immediate dominators of everything reachable from ``source``."""
        return dict(nx.immediate_dominators(self.graph, source))

    def skip_connections(self) -> Iterator[tuple[fx.Node, fx.Node, fx.Node]]:
        """Yield ``(join, skip, branch)`` for every ``join = skip + f(skip)``, in graph order.

        It is what a residual stream is made of: an addition one operand of which the other was
        computed from.  ``skip`` is given past casts and copies.
        """
        from_name = {n: getattr(getattr(n.target, "_schema", None), "name", "") for n in self.order}
        for node in self.order:
            if from_name[node] not in ADDITIONS or len(node.all_input_nodes) != 2:
                continue
            a, b = node.all_input_nodes
            for skip, branch in ((a, b), (b, a)):
                source = skip
                while from_name[source] in SAME_VALUE and not self.reaches(source, branch):
                    source = source.all_input_nodes[0]
                if source is not branch and self.reaches(source, branch):
                    yield node, source, branch
                    break
