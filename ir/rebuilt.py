"""Rebuilt: a program with another graph, over the same weights; and a graph to change for it.

torch's own copies rename inputs that are called like something of Python (``input``), and the
signature would no longer find them.
"""

from __future__ import annotations

import copy
import dataclasses

from torch import fx
from torch.export import ExportedProgram
from torch.fx._lazy_graph_module import _LazyGraphModule

from tokopt.ir.dead import remove_dead


def copy_graph(original: fx.Graph) -> fx.Graph:
    """Copy a graph; node metadata is copied shallowly, values are shared."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in original.nodes:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        copies[node].meta = dict(node.meta)
        if node.op == "placeholder":  # fx renames "input" and other names of Python's own
            copies[node].name = node.name
    return graph


def draft_of(exported: ExportedProgram) -> ExportedProgram:
    """Return a copy to rewrite: graph, signature and constants are its own, weights are shared.

    Its graph is not turned into code, which takes most of the time of a copy: nobody runs a draft.
    """
    draft = copy.copy(exported)
    draft._graph_module = _LazyGraphModule(exported.graph_module, copy_graph(exported.graph))
    draft._graph_signature = copy.deepcopy(exported.graph_signature)
    draft._constants = dict(exported.constants)
    return draft


def rebuilt(exported: ExportedProgram, graph: fx.Graph) -> ExportedProgram:
    """Return the program with another graph of the same outputs, its signature renamed to match.

    The graph is turned into code once here: on deep models that is what takes the time.
    """
    remove_dead(graph)
    graph.lint()
    (output,) = graph.find_nodes(op="output")
    signature = copy.deepcopy(exported.graph_signature)
    names: dict[str, str] = {}
    for spec, node in zip(signature.output_specs, output.args[0], strict=True):
        if isinstance(node, fx.Node) and hasattr(spec.arg, "name"):
            names[spec.arg.name] = node.name
            spec.arg = dataclasses.replace(spec.arg, name=node.name)
    modules = copy.deepcopy(exported.module_call_graph)
    for given in (entry.signature for entry in modules if entry.signature is not None):
        given.outputs = [
            dataclasses.replace(one, name=names.get(one.name, one.name)) for one in given.outputs
        ]
    return ExportedProgram(
        root=exported.graph_module,
        graph=graph,
        graph_signature=signature,
        state_dict=exported.state_dict,
        range_constraints=copy.deepcopy(exported.range_constraints),
        module_call_graph=modules,
        example_inputs=exported.example_inputs,
        constants=exported.constants,
        verifiers=exported.verifiers,
    )
