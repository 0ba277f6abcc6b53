"""Placement: the same program on another device, with copies of its weights there."""

from __future__ import annotations

import copy

from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass

from tokopt.ir.rebuilt import copy_graph, rebuilt


def on_device(exported: ExportedProgram, device: str) -> ExportedProgram:
    """Return the program on ``device``; what was given stays where it is.

    Calls that make tensors out of nothing and name no device would make them on torch's default
    one, whatever the program's: they get one.
    """
    moved = rebuilt(exported, copy_graph(exported.graph))
    moved._state_dict, moved._constants = dict(exported.state_dict), dict(exported.constants)
    bodies = [moved.graph_module]
    for name, body in list(moved.graph_module.named_children()):
        if isinstance(body, fx.GraphModule):  # of a loop; the copy above shares it
            own = copy.deepcopy(body)
            setattr(moved.graph_module, name, own)
            bodies.append(own)
    for body in bodies:
        for node in body.graph.nodes:
            if _makes_a_tensor(node) and node.kwargs.get("device") is None:
                node.kwargs = {**node.kwargs, "device": "cpu"}
    moved = move_to_device_pass(moved, device)
    for body in bodies:
        body.recompile()  # the pass changes graphs and leaves the code made of them
    return moved


def _makes_a_tensor(node: fx.Node) -> bool:
    """Return whether a call takes a device and no tensor that would tell it one."""
    target = node.target
    if not isinstance(target, OpOverload):
        return False
    takes_device = any(argument.name == "device" for argument in target._schema.arguments)
    return takes_device and not any(
        isinstance(operand.meta.get("val"), Tensor) for operand in node.all_input_nodes
    )
