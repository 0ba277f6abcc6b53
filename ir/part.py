"""Part: a joined program that was rewritten as the programs it was joined of.

A program gives what it gave before, and what later ones read of it (``crossing.py``).  Sound
because every call is in exactly one program, each program runs after those it reads from, and
sizes are read off the program's own inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
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

from tokopt.ir.crossing import find_crossing
from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.join import OWNER, chain, joined_outputs
from tokopt.ir.lengths import length_of, same_length
from tokopt.ir.links import Link, outputs_by_name
from tokopt.ir.owners import find_owners, is_size
from tokopt.ir.tensors import tensor_inputs
from tokopt.ir.trace import Known, compute_value, fake_mode_of

aten = torch.ops.aten
Named = tuple[str, fx.Node]


@dataclass(frozen=True)
class Part:
    """One of the programs; ``outputs`` names its tensor outputs in order."""

    exported: ExportedProgram
    outputs: tuple[str, ...]


def part(
    rewritten: ExportedProgram,
    graphs: Mapping[str, ExportedProgram],
    links: Sequence[Link],
    main: str,
    traced: Sequence[str] = (),
) -> tuple[dict[str, Part], tuple[Link, ...]]:
    """Return the programs of ``join(graphs, links, main)`` after its rewrite, and their links.

    ``traced`` names the outputs that came behind the joined program's own; each belongs to the
    program that computes it.  Raises ``UnsupportedError`` where a program needs a size that none
    of its inputs has, or a call depends on what only a later program is given.
    """
    names = chain(links, main)
    inner = [link for link in links if link.target in names]
    owners = find_owners(rewritten, names)
    places = [*joined_outputs(graphs, links, main), *(("", name) for name in traced)]
    given = [node for node in rewritten.graph.output_node().args[0] if isinstance(node, fx.Node)]
    results: dict[str, list[Named]] = {name: [] for name in names}
    for (program, output), node in zip(places, given, strict=True):
        results[program or names[owners[node]]].append((output, node))
    taken = {t.name for graph in graphs.values() for t in tensor_inputs(graph)}
    taken |= {output for graph in graphs.values() for output in outputs_by_name(graph)}
    crossing = find_crossing(owners, names, inner, taken)
    made = {}
    for number, name in enumerate(names):
        growing = _Growing(rewritten, {n for n, owner in owners.items() if owner == number})
        order = [tensor.name for tensor in tensor_inputs(graphs[name])]
        arriving = [*growing.own_inputs(graphs[name], inner, name), *crossing.arriving[number]]
        arriving.sort(key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order))
        leaving = [pair for pair in crossing.leaving[number] if pair not in results[name]]
        made[name] = growing.finished(arriving, _in_order(graphs[name], results[name] + leaving))
    renamed = [
        replace(x, output=own_name(x.output, made[x.source].exported)) for x in crossing.links
    ]
    return made, tuple(renamed)


def own_name(output: str, exported: ExportedProgram) -> str:
    """Return the name of a program's output: another one than its inputs have."""
    taken = {tensor.name for tensor in tensor_inputs(exported)}
    return f"output_{output}" if output in taken else output


def _in_order(graph: ExportedProgram, outputs: list[Named]) -> list[Named]:
    """Return outputs in the order of the original program's, new ones behind them."""
    order = list(outputs_by_name(graph))
    return sorted(
        outputs, key=lambda pair: order.index(pair[0]) if pair[0] in order else len(order)
    )


class _Growing:
    """One program while it grows; ``copies`` maps the rewritten program's nodes to its own."""

    def __init__(self, rewritten: ExportedProgram, own: set[fx.Node]) -> None:
        self.rewritten, self.own = rewritten, own
        self.mode, self.known = fake_mode_of(rewritten.graph), Known()
        self.graph, self.specs = fx.Graph(), list[InputSpec]()
        self.copies: dict[fx.Node, fx.Node] = {}
        self.stale = False  # an input has other strides than the value had that it is now
        self.sources = rewritten.graph.find_nodes(op="placeholder")

    def own_inputs(
        self, original: ExportedProgram, links: Sequence[Link], name: str
    ) -> list[Named]:
        """Return the inputs that no link gives, under the names they have in the original."""
        linked = {link.input for link in links if link.target == name}
        names = [t.name for t in tensor_inputs(original) if t.name not in linked]
        pairs = zip(self.sources, self.rewritten.graph_signature.input_specs, strict=True)
        given = [
            node
            for node, spec in pairs
            if spec.kind is InputKind.USER_INPUT
            and node in self.own
            and isinstance(spec.arg, TensorArgument)
        ]
        return list(zip(names, given, strict=True))

    def finished(self, inputs: Sequence[Named], outputs: Sequence[Named]) -> Part:
        """Build the program."""
        rewritten = self.rewritten
        calls = [n for n in rewritten.graph.nodes if n in self.own and n.op == "call_function"]
        read = {a for n in calls for a in n.all_input_nodes} | {node for _, node in outputs}
        for node, spec in zip(self.sources, rewritten.graph_signature.input_specs, strict=True):
            if spec.kind is not InputKind.USER_INPUT and node in read:
                self._placeholder(node.name, node)
                self.specs.append(spec)
        for name, node in inputs:
            self._placeholder(name, node)
            argument = TensorArgument(name=name)
            self.specs.append(InputSpec(InputKind.USER_INPUT, argument, None))
        for node in calls:
            arguments = fx.node.map_arg((node.args, node.kwargs), self._operand)
            call = self.graph.call_function(node.target, *arguments)
            call.meta = dict(node.meta)
            if self.stale:
                compute_value(call, self.mode, self.known)
            self.copies[node] = call
        results = [self._result(node) for _, node in outputs]
        self.graph.output(tuple(results))
        taken = {name for name, _ in inputs}
        names = [f"output_{name}" if name in taken else name for name, _ in outputs]
        return Part(self._program(results, names), tuple(names))

    def _placeholder(self, name: str, node: fx.Node) -> None:
        made = self.graph.placeholder(name)
        made.name = made.target = name
        made.meta = dict(node.meta)
        value = node.meta.get("val")
        if node not in self.sources and not value.is_contiguous():
            self.stale = True
            with self.mode:  # in a row in memory, whatever it was made of
                made.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        self.copies[node] = made

    def _operand(self, node: fx.Node) -> fx.Node:
        """Return the own copy of what a call reads; sizes are made where first needed."""
        if node not in self.copies:
            assert is_size(node)
            self.copies[node] = self._size(node)
        return self.copies[node]

    def _size(self, node: fx.Node) -> fx.Node:
        if node.target is not aten.sym_size.int or node.args[0] in self.copies:
            arguments = fx.node.map_arg((node.args, node.kwargs), self._operand)
            made = self.graph.call_function(node.target, *arguments)
        else:
            made = self.graph.call_function(aten.sym_size.int, self._measured(node))
        compute_value(made, self.mode)
        return made

    def _measured(self, node: fx.Node) -> tuple[fx.Node, int]:
        """Return an input and the dim of it that has a size read off another program's value."""
        wanted = length_of(node.meta["val"])
        for source in self.graph.find_nodes(op="placeholder"):
            for dim, size in enumerate(getattr(source.meta.get("val"), "shape", ())):
                if isinstance(size, torch.SymInt) and same_length(length_of(size), wanted):
                    return source, dim
        raise UnsupportedError(
            f"a program needs the size {wanted}, which none of its inputs has",
            where=describe(node),
            hint="export the programs with this size constant",
        )

    def _result(self, node: fx.Node) -> fx.Node:
        """Return what is given: a tensor of its own, in a row in memory."""
        made, value = self.copies[node], node.meta["val"]
        if made.op == "placeholder" or not value.is_contiguous():
            made = self.graph.call_function(
                aten.clone.default, (made,), {"memory_format": torch.contiguous_format}
            )
            made.meta = {OWNER: node.meta.get(OWNER)}
            compute_value(made, self.mode)
        return made

    def _program(self, results: Sequence[fx.Node], names: Sequence[str]) -> ExportedProgram:
        """Return the graph as a program that takes and gives tensors by name."""
        whole = self.rewritten
        given = [spec.arg for spec in self.specs if spec.kind is InputKind.USER_INPUT]
        outputs = [
            OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None)
            for node in results
        ]
        layout = pytree.tree_structure(((), {argument.name: 0 for argument in given}))
        gives = pytree.tree_structure(dict.fromkeys(names, 0))
        call = ModuleCallSignature(given, [s.arg for s in outputs], layout, gives)
        stored = {spec.target for spec in self.specs if spec.target is not None}
        return ExportedProgram(
            root=fx.GraphModule({}, self.graph),
            graph=self.graph,
            graph_signature=ExportGraphSignature(self.specs, outputs),
            state_dict={k: v for k, v in whole.state_dict.items() if k in stored},
            range_constraints=self._ranges(),
            module_call_graph=[ModuleCallEntry("", call)],
            constants={k: v for k, v in whole.constants.items() if k in stored},
            verifiers=whole.verifiers,
        )

    def _ranges(self) -> dict[Any, Any]:
        """Return the ranges of the free sizes that the program's own inputs have."""
        values = [node.meta.get("val") for node in self.graph.find_nodes(op="placeholder")]
        sizes = [size for value in values for size in getattr(value, "shape", ())]
        lengths = [length_of(size) for size in sizes if isinstance(size, torch.SymInt)]
        seen = {s for length in lengths if not isinstance(length, int) for s in length.free_symbols}
        return {s: span for s, span in self.rewritten.range_constraints.items() if s in seen}
