"""Stored: further tensors of a program, beside its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument

from tokopt.ir.trace import fake_mode_of


def add_stored(draft: ExportedProgram, tensors: Mapping[str, Tensor]) -> dict[str, fx.Node]:
    """Give a draft (``draft_of``) tensors by name; return their nodes by the same names.

    They become persistent buffers, in front of everything else; no input has one of their names.
    """
    graph, mode = draft.graph, fake_mode_of(draft.graph)
    first = next(iter(graph.nodes))
    found, specs = {}, []
    for name, tensor in tensors.items():
        with graph.inserting_before(first):
            node = graph.placeholder(name)
        node.name = node.target = name
        with mode:
            node.meta["val"] = torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)
        argument = TensorArgument(name=name)
        specs.append(InputSpec(InputKind.BUFFER, argument, name, persistent=True))
        found[name] = node
    signature = draft._graph_signature
    signature.input_specs = [*specs, *signature.input_specs]
    draft._state_dict = {**draft.state_dict, **tensors}
    return found
