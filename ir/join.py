"""Join: the programs that feed one another as one graph, so that it is analysed as one model.

A linked input is replaced by the output it is; nothing else changes.  Values of the programs in
front are recorded anew with the sizes of the last one (``joined_sizes.py``): two programs name
their free sizes alike by chance.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx
from torch import fx
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
)
from torch.utils import _pytree as pytree

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.joined_sizes import JoinedSizes
from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.trace import Known, compute_value


def chain(links: Sequence[Link], main: str) -> list[str]:
    """Return the programs that ``main`` depends on in the order they run, ``main`` last."""
    order = networkx.DiGraph((link.source, link.target) for link in links)
    order.add_node(main)
    needed = networkx.ancestors(order, main)
    return [n for n in networkx.lexicographical_topological_sort(order) if n in needed] + [main]


def join(
    graphs: Mapping[str, ExportedProgram], links: Sequence[Link], main: str
) -> ExportedProgram:
    """Return ``main`` and all that feeds it, each in normal form, as one program.

    Inputs are those that no link gives; outputs are ``main``'s.  Weights are shared with
    ``graphs``; the name of a stored tensor gets its program in front.  Raises
    ``UnsupportedError`` where a size is free in one program and not in the next.
    """
    names = chain(links, main)
    joining = _Joining({name: graphs[name] for name in names}, links, main)
    for stored in (True, False):
        for name in names:
            joining.place_inputs(name, stored)
    for name in names:
        joining.copy_calls(name)
    return joining.finished()


class _Joining:
    """The joined graph while it grows; ``nodes`` maps every program's nodes to their copies."""

    def __init__(
        self, graphs: Mapping[str, ExportedProgram], links: Sequence[Link], main: str
    ) -> None:
        self.graphs, self.main = graphs, main
        self.links = {(link.target, link.input): link for link in links if link.target in graphs}
        self.sizes = JoinedSizes(graphs, list(self.links.values()), main)
        self.graph, self.specs = fx.Graph(), list[InputSpec]()
        self.nodes: dict[str, dict[fx.Node, Any]] = {name: {} for name in graphs}
        self.state_dict: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}
        self.examples: dict[str, Any] = {}

    def place_inputs(self, name: str, stored: bool) -> None:
        """Add one program's stored tensors, or those of its inputs that no link gives."""
        exported = self.graphs[name]
        leaves = iter(pytree.tree_leaves(exported.example_inputs))
        for spec, node in zip(
            exported.graph_signature.input_specs,
            exported.graph.find_nodes(op="placeholder"),
            strict=True,
        ):
            given = spec.kind is InputKind.USER_INPUT
            example = next(leaves, None) if given else None
            if given is stored or (name, node.name) in self.links:
                continue
            copied = self._placeholder(name, node.name, alone=not given)
            copied.meta = dict(node.meta)
            self.sizes.record(copied, name)
            self.nodes[name][node] = copied
            target = None if spec.target is None else f"{name}.{spec.target}"
            arg = replace(spec.arg, name=copied.name)
            self.specs.append(replace(spec, arg=arg, target=target))
            for values, kept in (
                (exported.state_dict, self.state_dict),
                (exported.constants, self.constants),
            ):
                if target is not None and spec.target in values:
                    kept[target] = values[spec.target]
            if given:
                self.examples[copied.name] = example

    def _placeholder(self, program: str, name: str, alone: bool) -> fx.Node:
        """Add one under its own name, with the program's in front where two have it."""
        if alone or name in self.examples:
            name = re.sub(r"\W", "_", f"{program}_{name}")
        node = self.graph.placeholder(name)
        node.name = node.target = name  # fx avoids names of Python's own, such as "input"
        return node

    def copy_calls(self, name: str) -> None:
        """Add one program's calls; its linked inputs are the outputs of those before it."""
        nodes, known = self.nodes[name], Known()
        for node in self.graphs[name].graph.nodes:
            if node.op == "placeholder" and node not in nodes:
                link = self.links[name, node.name]
                source = outputs_by_name(self.graphs[link.source])[link.output]
                nodes[node] = self.nodes[link.source][source]
            elif node.op == "call_function":
                nodes[node] = self.graph.node_copy(node, lambda n: nodes[n])
                nodes[node].meta = dict(node.meta)
                if name != self.main:
                    compute_value(nodes[node], self.sizes.mode, known)

    def finished(self) -> ExportedProgram:
        """Add the output and return the program."""
        main, nodes = self.graphs[self.main], self.nodes[self.main]
        results = fx.node.map_arg(main.graph.output_node().args[0], lambda n: nodes[n])
        self.graph.output(tuple(results))
        outputs = [
            _renamed(s, r) for s, r in zip(main.graph_signature.output_specs, results, strict=True)
        ]
        given = [spec.arg for spec in self.specs if spec.kind is InputKind.USER_INPUT]
        layout = pytree.tree_structure(((), {arg.name: 0 for arg in given}))
        call = ModuleCallSignature(
            given, [spec.arg for spec in outputs], layout, main.call_spec.out_spec
        )
        whole = all(exported.example_inputs is not None for exported in self.graphs.values())
        return ExportedProgram(
            root=fx.GraphModule({}, self.graph),
            graph=self.graph,
            graph_signature=ExportGraphSignature(self.specs, outputs),
            state_dict=self.state_dict,
            range_constraints=dict(main.range_constraints),
            module_call_graph=[ModuleCallEntry("", call)],
            example_inputs=((), self.examples) if whole else None,
            constants=self.constants,
            verifiers=main.verifiers,
        )


def _renamed(spec: OutputSpec, result: Any) -> OutputSpec:
    if spec.kind is not OutputKind.USER_OUTPUT:
        raise UnsupportedError(f"a program of several writes to {spec.target!r}")
    return (
        replace(spec, arg=replace(spec.arg, name=result.name))
        if isinstance(result, fx.Node)
        else spec
    )
