"""Decomposing for ONNX, call by call: only what has no translation is taken apart.

``torch.onnx.export`` asks its program for ``run_decompositions``, which traces the whole graph
twice: 21 of 35 s of the shipped model's lowering, to replace six of its 1000 calls.  A program in
normal form is functional and every value is recorded, so a call can be taken apart where it stands.

Sound: a call is replaced by what torch itself traces it to under the table it was given.  A graph
that writes to a value, before or after, is left to torch's own way, which makes it functional.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from tokopt.ir.rebuilt import copy_graph, rebuilt
from tokopt.ir.trace import fake_mode_of, splice

Table = Mapping[Any, Callable[..., Any]]


class CallByCall(ExportedProgram):
    """A program as it is, whose decompositions are made in place."""

    def __init__(self, exported: ExportedProgram) -> None:
        self.__dict__.update(exported.__dict__)

    def run_decompositions(
        self, decomp_table: Table | None = None, decompose_custom_triton_ops: bool = False
    ) -> ExportedProgram:
        """Return a program without the operators of the table; this one stays as it is."""
        graph, table = copy_graph(self.graph), decomp_table
        if table is not None and not _writes(graph) and not self._hides(table):
            _take_apart(graph, table)
        if table is None or _writes(graph) or self._hides(table):
            wanted: Any = table
            return super().run_decompositions(wanted, decompose_custom_triton_ops)
        _share_sizes(graph)
        return rebuilt(self, graph)

    def _hides(self, table: Table) -> bool:
        """Whether an operator of the table is inside the body of a loop."""
        bodies = [m for m in self.graph_module.children() if isinstance(m, fx.GraphModule)]
        targets = (node.target for body in bodies for node in body.graph.nodes)
        return any(isinstance(t, OpOverload) and _is_taken_apart(t, table) for t in targets)


def _writes(graph: fx.Graph) -> bool:
    """Whether some call writes to its operands: torch's own view of a few operators does."""
    targets = (node.target for node in graph.nodes)
    return any(isinstance(t, OpOverload) and t._schema.is_mutable for t in targets)


def _take_apart(graph: fx.Graph, table: Table) -> None:
    mode = fake_mode_of(graph)
    for node in list(graph.nodes):
        if not isinstance(node.target, OpOverload) or not _is_taken_apart(node.target, table):
            continue
        with graph.inserting_before(node):
            made = splice(graph, _calling(node), node.all_input_nodes, mode, table)
        _put_in_place(graph, node, made)


def _put_in_place(graph: fx.Graph, node: fx.Node, made: fx.Node | Sequence[fx.Node]) -> None:
    """Let ``made`` be read in a call's stead, item by item where the call gives several values."""
    if isinstance(made, fx.Node):
        node.replace_all_uses_with(made)
    else:
        for item in list(node.users):
            assert item.target is operator.getitem, "several values are read one by one"
            item.replace_all_uses_with(made[item.args[1]])  # type: ignore[index]
            graph.erase_node(item)
    graph.erase_node(node)


def _is_taken_apart(target: OpOverload, table: Table) -> bool:
    """Whether torch would: the table has it, or it is a composite that may be a view."""
    views = any(result.alias_info is not None for result in target._schema.returns)
    return target in table or (views and target._can_decompose())


def _calling(node: fx.Node) -> Callable[..., Any]:
    """Return what a call does as a function of the nodes it reads."""
    read, target = node.all_input_nodes, node.target
    assert callable(target)

    def run(*values: Any) -> Any:
        given = dict(zip(read, values, strict=True))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: given[n])
        return target(*args, **kwargs)

    return run


def _share_sizes(graph: fx.Graph) -> None:
    """Compute every size once: equal expressions over the sizes of the inputs are equal numbers."""
    first: dict[str, fx.Node] = {}
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, torch.SymInt):
            known = first.setdefault(str(value.node.expr), node)
            if known is not node:
                node.replace_all_uses_with(known)
