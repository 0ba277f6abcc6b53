"""Stage alone: what a stage inserted, as a program of its own, to be timed by itself.

Its inputs are the values that the inserted calls read of the rest, its outputs what the rest reads
of them.  The calls are the very calls of the rewritten program; the values are those of one run.
Equal values that are read (one table, unsqueezed for every layer) are read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram, export

from tokopt.ir.binding import bind
from tokopt.ir.trace import is_body
from tokopt.passes.apply_plan import Applied
from tokopt.passes.decompose import decompose


def stage_alone(
    applied: Applied, number: int, inputs: Mapping[str, Tensor]
) -> tuple[ExportedProgram, dict[str, Tensor]]:
    """Return the calls that a plan's stage inserted, in plain aten, and what they are given.

    ``inputs`` are the program's, by name; all sizes are theirs.
    """
    graph, names = applied.exported.graph, applied.inserted[number]
    nodes = [n for n in graph.nodes if n.name in names and n.op == "call_function"]
    inside = set(nodes)
    given = {
        o: None for n in nodes for o in n.all_input_nodes if o not in inside and not is_body(o)
    }
    read = [n for n in nodes if any(user not in inside for user in n.users)]
    values = _values_of(applied.exported, inputs, set(given))
    alone = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    first: dict[str, fx.Node] = {}
    for node in given:
        same = first.setdefault(_form(node), node)
        if same is not node:
            copies[node] = copies[same]
        elif isinstance(values[node], Tensor):
            copies[node] = alone.placeholder(node.name)
        else:
            copies[node] = values[node]
    for node in nodes:
        for body in (o for o in node.all_input_nodes if is_body(o)):
            copies[body] = alone.get_attr(str(body.target))
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), copies.__getitem__)
        copies[node] = alone.call_function(node.target, args, kwargs)
    alone.output(tuple(copies[n] for n in read if isinstance(n.meta.get("val"), Tensor)))
    module = fx.GraphModule(applied.exported.graph_module, alone)
    tensors = tuple(values[n] for n in first.values() if isinstance(values[n], Tensor))
    with torch.no_grad():
        exported = export(module, tensors, strict=False)
    names_of = [str(name) for name in exported.graph_signature.user_inputs]
    return decompose(exported), dict(zip(names_of, tensors, strict=True))


def _form(node: fx.Node) -> str:
    """Return what is equal for calls that are: every lowering computes such a value once."""
    if node.op != "call_function":
        return node.name
    return f"{node.target}{node.args}{node.kwargs}"


class _Recording(fx.Interpreter):
    """Runs a graph and keeps the values of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = {node.name for node in wanted}
        self.kept: dict[str, Any] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node.name in self.wanted:
            self.kept[node.name] = value
        return value


def _values_of(
    exported: ExportedProgram, inputs: Mapping[str, Tensor], wanted: set[fx.Node]
) -> dict[fx.Node, Any]:
    runner = _Recording(exported.graph_module, wanted)
    with torch.no_grad():
        runner.run(*bind(exported, inputs))
    return {node: runner.kept[node.name] for node in exported.graph.nodes if node in wanted}
