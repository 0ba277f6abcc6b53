"""Call an exported program by the names of its inputs, whatever Python structure they had."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree

from tokopt.ir.tensors import tensor_outputs
from tokopt.targets.base import Runner
from tokopt.targets.signature import signature_of


def runner_of(
    exported: ExportedProgram,
    output_names: Sequence[str] | None = None,
    transform: Callable[[nn.Module], Callable[..., object]] = lambda module: module,
) -> Runner:
    """Return a function from inputs by name to outputs by name that runs ``exported`` in torch.

    Names are those of ``signature_of``.  Runs without gradients; what runs is what ``transform``
    makes of the program's module.
    """
    names = [spec.name for spec in signature_of(exported, output_names).outputs]
    places = [tensor.place for tensor in tensor_outputs(exported)]
    module = transform(exported.module())

    def run(inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        args, kwargs = arguments(exported, inputs)
        with torch.no_grad():
            flat = _pytree.tree_leaves(module(*args, **kwargs))
        return {name: flat[place] for name, place in zip(names, places, strict=True)}

    return run


def on_host(runner: Runner) -> Runner:
    """Return a runner whose outputs are on the CPU."""
    return lambda inputs: {name: value.cpu() for name, value in runner(inputs).items()}


def arguments(
    exported: ExportedProgram, inputs: Mapping[str, Tensor]
) -> tuple[tuple[object, ...], dict[str, object]]:
    """Arrange ``inputs`` (by name) as the (args, kwargs) that ``exported`` was captured with."""
    user = [
        spec.arg
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    ]
    flat = [arg.value if isinstance(arg, ConstantArgument) else inputs[arg.name] for arg in user]
    spec = exported.call_spec.in_spec
    if spec is None:
        return tuple(flat), {}
    args, kwargs = _pytree.tree_unflatten(flat, spec)
    return args, kwargs
