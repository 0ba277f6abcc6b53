"""Rebuilt: a program with another graph, over the same weights; and a graph to change for it.

torch's own copies rename inputs that are called like something of Python (``input``), and the
signature would no longer find them.
"""

from __future__ import annotations

import copy
import dataclasses

from torch import fx
from torch.export import ExportedProgram

from tokopt.ir.dead import remove_dead


def copy_graph(module: fx.GraphModule) -> fx.GraphModule:
    """Copy a graph module's graph; node metadata is copied shallowly, values are shared."""
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        copies[node].meta = dict(node.meta)
        if node.op == "placeholder":  # fx renames "input" and other names of Python's own
            copies[node].name = node.name
    graph._codegen = copy.deepcopy(module.graph._codegen)
    result = fx.GraphModule(module, graph)
    result.meta = dict(module.meta)
    return result


def rebuilt(exported: ExportedProgram, module: fx.GraphModule) -> ExportedProgram:
    """Return the program with another graph of the same outputs, its signature renamed to match."""
    remove_dead(module.graph)
    module.graph.lint()
    module.recompile()
    (output,) = module.graph.find_nodes(op="output")
    signature = copy.deepcopy(exported.graph_signature)
    for spec, node in zip(signature.output_specs, output.args[0], strict=True):
        if isinstance(node, fx.Node) and hasattr(spec.arg, "name"):
            spec.arg = dataclasses.replace(spec.arg, name=node.name)
    return exported._update(module, signature)
