"""Growing: one program of a parted graph, built of the calls that are its own.

Sizes are read off the program's own inputs; what it is handed lies in a row in memory, and so does
what it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
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

from tokopt.ir.dims import describe
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.join import OWNER
from tokopt.ir.lengths import length_of, same_length
from tokopt.ir.links import Link
from tokopt.ir.owners import is_size
from tokopt.ir.tensors import tensor_inputs
from tokopt.ir.trace import Known, compute_value, fake_mode_of, is_body

aten = torch.ops.aten
Named = tuple[str, fx.Node]
"""A value under the name that an input or output has for it."""


class Growing:
    """One program while it grows; ``copies`` maps the rewritten program's nodes to its own."""

    def __init__(self, rewritten: ExportedProgram, own: set[fx.Node]) -> None:
        self.rewritten, self.own = rewritten, own
        self.mode, self.known = fake_mode_of(rewritten.graph), Known()
        self.module, self.specs = fx.GraphModule(torch.nn.Module(), fx.Graph()), list[InputSpec]()
        self.graph = self.module.graph
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

    def finished(
        self, inputs: Sequence[Named], outputs: Sequence[Named]
    ) -> tuple[ExportedProgram, tuple[str, ...]]:
        """Build the program; return it and its outputs' names (no input has one of them)."""
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
        return self._program(results, names), tuple(names)

    def _placeholder(self, name: str, node: fx.Node) -> None:
        made = self.graph.placeholder(name)
        made.name = made.target = name
        made.meta = dict(node.meta)
        value: Any = node.meta.get("val")
        if node not in self.sources and not value.is_contiguous():
            self.stale = True
            with self.mode:  # in a row in memory, whatever it was made of
                made.meta["val"] = torch.empty(value.shape, dtype=value.dtype, device=value.device)
        self.copies[node] = made

    def _operand(self, node: fx.Node) -> fx.Node:
        """Return the own copy of what a call reads; sizes are made where first needed."""
        if node not in self.copies:
            assert is_size(node) or is_body(node)
            self.copies[node] = self._body(node) if is_body(node) else self._size(node)
        return self.copies[node]

    def _body(self, node: fx.Node) -> fx.Node:
        """Hold a loop's body as well."""
        name = str(node.target)
        setattr(self.module, name, getattr(self.rewritten.graph_module, name))
        return self.graph.get_attr(name)

    def _size(self, node: fx.Node) -> fx.Node:
        if node.target is not aten.sym_size.int or node.args[0] in self.copies:
            target: Any = node.target
            arguments = fx.node.map_arg((node.args, node.kwargs), self._operand)
            made = self.graph.call_function(target, *arguments)
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
            root=self.module,
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
