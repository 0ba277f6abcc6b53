"""The tensors a caller of an exported program gives and gets; constants among them left out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, TensorArgument

from tokopt.ir.errors import UnsupportedError


@dataclass(frozen=True)
class Tensor:
    """One tensor: ``place`` among all user inputs (or outputs), value ``name``, fake ``value``."""

    place: int
    name: str
    value: torch.Tensor


def tensor_inputs(exported: ExportedProgram) -> list[Tensor]:
    """Return the user's tensor inputs in order.  ``UnsupportedError`` where a size is an input."""
    specs = exported.graph_signature.input_specs
    user = [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]
    return _tensors(exported, user, "input")


def tensor_outputs(exported: ExportedProgram) -> list[Tensor]:
    """Return the tensor outputs in order.  ``UnsupportedError`` where a size is an output."""
    return _tensors(exported, [s.arg for s in exported.graph_signature.output_specs], "output")


def _tensors(exported: ExportedProgram, args: list[object], role: str) -> list[Tensor]:
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if "val" in node.meta}
    found = []
    for place, arg in enumerate(args):
        if isinstance(arg, TensorArgument):
            found.append(Tensor(place, arg.name, values[arg.name]))
        elif not isinstance(arg, ConstantArgument):
            raise UnsupportedError(f"{role} {place} of the program is a size", expected="a tensor")
    return found
