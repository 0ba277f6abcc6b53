"""Join: the programs that feed one another as one graph, so that it is analysed as one model.

A linked input is replaced by the output it is; nothing else changes.  Values of the programs in
front are recorded anew with the sizes of the last one (``joined_sizes.py``): two programs name
their free sizes alike by chance.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
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
    TensorArgument,
)
from torch.utils import _pytree as pytree

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.joined_sizes import JoinedSizes
from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.outer import Place, outer_names
from tokopt.ir.tensors import tensor_inputs
from tokopt.ir.trace import Known, compute_value

OWNER = "tokopt.program"
"""Metadata of a node of a joined graph: the program it is from."""
HANDED = "tokopt.handed"
"""Metadata of a value that a later program takes: it need not have its original length."""


def chain(links: Sequence[Link], main: str) -> list[str]:
    """Return the programs that ``main`` depends on in the order they run, ``main`` last."""
    order = networkx.DiGraph((link.source, link.target) for link in links)
    order.add_node(main)
    needed = networkx.ancestors(order, main)
    return [n for n in networkx.lexicographical_topological_sort(order) if n in needed] + [main]


def running_order(names: Iterable[str], links: Sequence[Link], main: str) -> list[str]:
    """Return all programs in the order they run: what ``main`` depends on, ``main``, the rest."""
    order = networkx.DiGraph((link.source, link.target) for link in links)
    order.add_nodes_from(names)
    first = chain(links, main)
    return first + [n for n in networkx.lexicographical_topological_sort(order) if n not in first]


def join(
    graphs: Mapping[str, ExportedProgram], links: Sequence[Link], main: str
) -> ExportedProgram:
    """Return ``main`` and all that feeds it, each in normal form, as one program.

    Inputs are those that no link gives (``outer.py`` names them); outputs are ``joined_outputs``.
    Weights are shared with ``graphs``; the name of a stored tensor gets its program in front.
    Raises ``UnsupportedError`` where a size is free in one program and not in the next.
    """
    names = chain(links, main)
    joining = _Joining({name: graphs[name] for name in names}, links, main)
    for stored in (True, False):
        for name in names:
            joining.place_inputs(name, stored)
    for name in names:
        joining.copy_calls(name)
    return joining.finished()


def joined_outputs(
    graphs: Mapping[str, ExportedProgram], links: Sequence[Link], main: str
) -> list[Place]:
    """Return the tensors that the joined program gives, in order, as ``(program, output)``.

    Those of ``main``, then of the programs in front what none of the joined takes, or one of
    the others takes.
    """
    names = chain(links, main)
    inner = {(link.source, link.output) for link in links if link.target in names}
    outside = {(link.source, link.output) for link in links if link.target not in names}
    own = [(main, output) for output in outputs_by_name(graphs[main])]
    front = [(name, output) for name in names[:-1] for output in outputs_by_name(graphs[name])]
    return own + [place for place in front if place not in inner or place in outside]


class _Joining:
    """The joined graph while it grows; ``nodes`` maps every program's nodes to their copies."""

    def __init__(
        self, graphs: Mapping[str, ExportedProgram], links: Sequence[Link], main: str
    ) -> None:
        self.graphs, self.main = graphs, main
        self.links = {(link.target, link.input): link for link in links if link.target in graphs}
        self.places = joined_outputs(graphs, links, main)
        self.handed = [(link.source, link.output) for link in links if link.source in graphs]
        outer = [
            (name, tensor.name)
            for name, graph in graphs.items()
            for tensor in tensor_inputs(graph)
            if (name, tensor.name) not in self.links
        ]
        self.outer = outer_names(outer)
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
            copied = self._placeholder(name, node.name)
            copied.meta = {**node.meta, OWNER: name}
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

    def _placeholder(self, program: str, name: str) -> fx.Node:
        """Add an input under its outer name, a stored tensor with its program's in front."""
        stored = re.sub(r"\W", "_", f"{program}_{name}")
        name = self.outer.get((program, name), stored)
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
                nodes[node].meta = {**node.meta, OWNER: name}
                if name != self.main:
                    compute_value(nodes[node], self.sizes.mode, known)

    def finished(self) -> ExportedProgram:
        """Add the output and return the program."""
        main, nodes = self.graphs[self.main], self.nodes[self.main]
        for program, output in self.handed:
            node = self.nodes[program][outputs_by_name(self.graphs[program])[output]]
            node.meta[HANDED] = (program, output)
        results = list(fx.node.map_arg(main.graph.output_node().args[0], lambda n: nodes[n]))
        further = [
            self.nodes[program][outputs_by_name(self.graphs[program])[output]]
            for program, output in self.places
            if program != self.main
        ]
        self.graph.output((*results, *further))
        outputs = [
            _renamed(s, r) for s, r in zip(main.graph_signature.output_specs, results, strict=True)
        ]
        outputs += [
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None)
            for node in further
        ]
        out_spec = main.call_spec.out_spec
        if further and out_spec is not None:
            own = pytree.tree_unflatten([0] * out_spec.num_leaves, out_spec)
            out_spec = pytree.tree_structure((own, (0,) * len(further)))
        given = [spec.arg for spec in self.specs if spec.kind is InputKind.USER_INPUT]
        layout = pytree.tree_structure(((), {arg.name: 0 for arg in given}))
        call = ModuleCallSignature(given, [spec.arg for spec in outputs], layout, out_spec)
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
