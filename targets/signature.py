"""A program's inputs and outputs as data: names, dtypes, shapes with readable symbol names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.output_names import checked_names, structural_names
from tokopt.ir.tensors import tensor_inputs, tensor_outputs
from tokopt.targets.symbols import Dim, readable, symbol_names


@dataclass(frozen=True)
class TensorSpec:
    """One input or output: ``dtype`` as in ``"float32"``, ``shape`` with symbols by name."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs in order; ``ranges`` gives (least, greatest or None) of each symbol."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    ranges: Mapping[str, tuple[int, int | None]]


def signature_of(exported: ExportedProgram, output_names: Sequence[str] | None = None) -> Signature:
    """Read the signature of ``exported``; outputs get ``output_names`` or names of their own.

    Raises ``UnsupportedError`` for programs that write to their inputs or buffers, or that take
    or return a size, and ``InputError`` for output names that are not one distinct name per
    tensor output.
    """
    for spec in exported.graph_signature.output_specs:
        if spec.kind is not OutputKind.USER_OUTPUT:
            raise UnsupportedError(
                f"the program writes to {spec.target!r} ({spec.kind.name.lower()})",
                expected="a program whose results are all outputs",
                hint="return the new value as an output before exporting",
            )
    inputs, outputs = tensor_inputs(exported), tensor_outputs(exported)
    taken = [tensor.name for tensor in inputs]
    if output_names is None:
        output_names = structural_names(exported, [tensor.place for tensor in outputs], taken)
    names = checked_names(output_names, len(outputs), taken)
    symbols = symbol_names(inputs)
    return Signature(
        tuple(_spec(tensor.name, tensor.value, symbols) for tensor in inputs),
        tuple(_spec(n, t.value, symbols) for n, t in zip(names, outputs, strict=True)),
        _ranges(exported, symbols),
    )


def _spec(name: str, value: torch.Tensor, symbols: Mapping[str, str]) -> TensorSpec:
    dtype = str(value.dtype).removeprefix("torch.")
    return TensorSpec(name, dtype, tuple(readable(size, symbols) for size in value.shape))


def _ranges(
    exported: ExportedProgram, symbols: Mapping[str, str]
) -> dict[str, tuple[int, int | None]]:
    found = {}
    for symbol, span in exported.range_constraints.items():
        greatest = int(span.upper) if span.upper.is_Integer else None
        if str(symbol) in symbols:
            found[symbols[str(symbol)]] = (int(span.lower), greatest)
    return dict(sorted(found.items()))
