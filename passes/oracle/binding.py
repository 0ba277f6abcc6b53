"""Binding: what a graph's placeholders are given: weights and constants by signature, user inputs.

Everything of a half-precision dtype becomes fp32: a wrong position id moves logits by about 2e-3,
which hides under bf16 tolerances.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument
from torch.fx.node import map_aggregate

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.lengths import Length, length_of

HALF = frozenset({torch.float16, torch.bfloat16})


def full_precision(value: Any) -> Any:
    """Return a value (tensor, dtype, or lists of them) with fp32 for every half dtype."""

    def one(leaf: Any) -> Any:
        if isinstance(leaf, torch.dtype):
            return torch.float32 if leaf in HALF else leaf
        return leaf.float() if isinstance(leaf, Tensor) and leaf.dtype in HALF else leaf

    return map_aggregate(value, one)


def bind(exported: ExportedProgram, inputs: Mapping[str, Tensor]) -> list[Any]:
    """Return the values of the placeholders, in order.

    ``inputs`` maps the names of the user inputs to tensors.  Raises ``InputError`` for one that is
    missing, unknown or of another shape than the program was exported for.
    """
    placeholders = exported.graph.find_nodes(op="placeholder")
    nodes = {node.name: node for node in placeholders}
    values: list[Any] = []
    wanted = set()
    for spec in exported.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument):
            values.append(spec.arg.value)
        elif spec.kind is InputKind.USER_INPUT:
            wanted.add(spec.arg.name)
            value = _given(spec.arg.name, inputs, nodes[spec.arg.name].meta.get("val"))
            values.append(full_precision(value))
        elif spec.target in exported.state_dict:
            values.append(full_precision(exported.state_dict[spec.target]))
        elif spec.target in exported.constants:
            values.append(full_precision(exported.constants[spec.target]))
        else:
            raise UnsupportedError(f"a program with an input of kind {spec.kind.name}")
    unknown = sorted(set(inputs) - wanted)
    if unknown:
        raise InputError(f"there is no input {unknown[0]!r}", expected=", ".join(sorted(wanted)))
    return values


def _given(name: str, inputs: Mapping[str, Tensor], example: Any) -> Tensor:
    if name not in inputs:
        raise InputError(f"input {name!r} is missing", expected="a tensor for every user input")
    value = inputs[name]
    if isinstance(example, Tensor):
        fits = value.ndim == example.ndim and all(
            not isinstance(want, int) or want == size
            for want, size in zip(example.shape, value.shape, strict=True)
        )
        if not fits:
            raise InputError(
                f"input {name!r} has shape {tuple(value.shape)}",
                expected=f"the exported shape {tuple(example.shape)}",
            )
    return value


def output_names(exported: ExportedProgram) -> list[tuple[int, str]]:
    """Return position and name of every tensor the program gives its user."""
    return [
        (position, spec.arg.name)
        for position, spec in enumerate(exported.graph_signature.output_specs)
        if spec.kind is OutputKind.USER_OUTPUT and isinstance(spec.arg, TensorArgument)
    ]


class Sizes:
    """The numbers behind symbolic sizes in one run."""

    def __init__(self, exported: ExportedProgram, values: list[Any]) -> None:
        self._numbers: dict[Any, int] = {}
        for node, value in zip(exported.graph.find_nodes(op="placeholder"), values, strict=True):
            example = node.meta.get("val")
            if isinstance(example, Tensor) and isinstance(value, Tensor):
                for symbol, size in zip(example.shape, value.shape, strict=True):
                    expr = length_of(symbol)
                    if not isinstance(expr, int) and expr.is_Symbol:
                        self._numbers[expr] = int(size)

    def number(self, length: Length) -> int:
        """Return a length as a number."""
        return length if isinstance(length, int) else int(length.subs(self._numbers))
