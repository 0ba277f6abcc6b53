"""New inputs: inputs and free sizes that a program gets beside those it was exported with."""

from __future__ import annotations

import copy
import re
from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch._subclasses import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx.experimental.symbolic_shapes import DimDynamic
from torch.utils import _pytree as pytree

from tokopt.ir.errors import UnsupportedError

HINT = 5
"""What a new size is while shapes are computed: neither 0 nor 1, which would be taken for fixed."""


def new_size(mode: FakeTensorMode, name: str, hint: int = HINT) -> torch.SymInt:
    """Return a free size that no value has yet, in the environment of a program's own."""
    environment = mode.shape_env
    if environment is None:
        raise UnsupportedError("a program of constant sizes gets no free one")
    for one in environment.var_to_range:  # those of a loaded program are not counted as taken
        environment.unique_ids.update(map(int, re.findall(r"\d+$", one.name)))
    source = ConstantSource(name)
    with environment.ignore_fresh_unbacked_symbols():
        symbol = environment.create_symbol(
            hint, source, dynamic_dim=DimDynamic.DYNAMIC, do_not_specialize_zero_one=True
        )
    made: Any = environment.create_symintnode(symbol, hint=hint, source=source)
    size: torch.SymInt = made
    return size


def add_input(draft: ExportedProgram, name: str, value: torch.Tensor) -> fx.Node:
    """Give a draft (``draft_of``) an input behind all others; ``value`` is what is recorded of it.

    Raises ``UnsupportedError`` where the program has a value of that name.
    """
    graph = draft.graph
    if any(node.name == name for node in graph.nodes):
        raise UnsupportedError(f"the program has a value called {name!r} already")
    with graph.inserting_after(graph.find_nodes(op="placeholder")[-1]):
        node = graph.placeholder(name)
    node.name = node.target = name
    node.meta["val"] = value
    specs = draft.graph_signature.input_specs
    specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(name=name), None))
    return node


def call_with(exported: ExportedProgram, names: Sequence[str]) -> None:
    """Let a program be called with inputs that ``add_input`` gave it, by name."""
    entry = exported.module_call_graph[0]
    if not names or entry.signature is None:
        return
    entry = copy.copy(entry)
    entry.signature = copy.copy(entry.signature)
    signature: Any = entry.signature
    leaves = [0] * signature.in_spec.num_leaves
    args, kwargs = pytree.tree_unflatten(leaves, signature.in_spec)
    signature.in_spec = pytree.tree_structure((args, {**kwargs, **dict.fromkeys(names, 0)}))
    signature.inputs = [*signature.inputs, *(TensorArgument(name=name) for name in names)]
    if signature.forward_arg_names is not None:
        signature.forward_arg_names = [*signature.forward_arg_names, *names]
    exported._example_inputs = None
    exported._module_call_graph = [entry, *exported.module_call_graph[1:]]


def drop_inputs(draft: ExportedProgram, names: Container[str]) -> None:
    """Take inputs that nothing reads off a draft."""
    for node in draft.graph.find_nodes(op="placeholder"):
        if node.name in names:
            draft.graph.erase_node(node)
    signature = draft.graph_signature
    signature.input_specs = [s for s in signature.input_specs if s.arg.name not in names]


def call_by_name(exported: ExportedProgram, examples: Mapping[str, torch.Tensor] | None) -> None:
    """Let a program be called with the inputs that it has now, all by name."""
    entry = copy.copy(exported.module_call_graph[0])
    specs = exported.graph_signature.input_specs
    given = [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]
    if entry.signature is not None:
        layout = pytree.tree_structure(((), {argument.name: 0 for argument in given}))
        entry.signature = replace(
            entry.signature, inputs=list(given), in_spec=layout, forward_arg_names=None
        )
    exported._module_call_graph = [entry, *exported.module_call_graph[1:]]
    known = None if examples is None else {a.name: examples[a.name] for a in given}
    exported._example_inputs = None if known is None else ((), known)
