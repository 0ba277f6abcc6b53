"""Binding: the values of a graph's placeholders, in order, from a program and named inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, InputSpec

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.lengths import length_of


def bind(exported: ExportedProgram, inputs: Mapping[str, Tensor]) -> list[Any]:
    """Return one value per placeholder: parameters, buffers, constants, user inputs by name.

    Raises ``InputError`` for a missing or unknown name, and for a dtype or shape that the program
    was not exported for (symbolic sizes may be any, but the same symbol is one size).
    """
    specs = exported.graph_signature.input_specs
    names = [s.arg.name for s in specs if _given(s)]
    unknown = next((n for n in inputs if n not in names), None)
    if unknown is not None:
        raise InputError(f"the program has no input {unknown!r}", expected=", ".join(names))
    sizes: dict[sympy.Symbol, int] = {}
    placeholders = exported.graph.find_nodes(op="placeholder")
    return [
        _value(exported, spec, node, inputs, sizes)
        for spec, node in zip(specs, placeholders, strict=True)
    ]


def _given(spec: InputSpec) -> bool:
    return spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument)


def _value(
    exported: ExportedProgram,
    spec: InputSpec,
    node: fx.Node,
    inputs: Mapping[str, Tensor],
    sizes: dict[sympy.Symbol, int],
) -> Any:
    if spec.kind is InputKind.USER_INPUT:
        if isinstance(spec.arg, ConstantArgument):
            return spec.arg.value
        if spec.arg.name not in inputs:
            raise InputError(f"no value is given for the input {spec.arg.name!r}")
        _check(spec.arg.name, inputs[spec.arg.name], node.meta["val"], sizes)
        return inputs[spec.arg.name]
    held = held_value(exported, spec)
    if held is not None:
        return held
    raise UnsupportedError(
        f"the program holds no value for {spec.target!r}",
        where=spec.arg.name,
        expected="parameters, buffers and constants saved with the program",
    )


def held_value(exported: ExportedProgram, spec: InputSpec) -> Any:
    """Return the parameter, buffer or constant a program holds for an input; None: it has none."""
    for values in (exported.state_dict, exported.constants):
        if spec.target in values:
            return values[spec.target]
    return None


def _check(name: str, value: Tensor, meta: Any, sizes: dict[sympy.Symbol, int]) -> None:
    wanted = [length_of(size) for size in meta.shape]
    fits = value.dim() == len(wanted) and all(
        (sizes.setdefault(want, got) if isinstance(want, sympy.Symbol) else want) == got
        for want, got in zip(wanted, value.shape, strict=False)
        if isinstance(want, int | sympy.Symbol)
    )
    if not fits or value.dtype != meta.dtype:
        raise InputError(
            f"input {name!r} is {value.dtype} {list(value.shape)}",
            expected=f"{meta.dtype} [{', '.join(map(str, wanted))}]",
        )
