"""Inputs: the tensors that gates and calibration run on, from a file or from the archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from tokopt.ir.errors import InputError
from tokopt.ir.placeholders import Placeholders
from tokopt.targets.input_check import checked_inputs
from tokopt.targets.placeholder_check import check_placeholders
from tokopt.targets.signature import Signature, signature_of


def input_names(exported: ExportedProgram) -> list[str]:
    """Return the names of a program's tensor inputs, in order."""
    return [
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and not isinstance(spec.arg, ConstantArgument)
    ]


def example_inputs(exported: ExportedProgram) -> dict[str, Tensor]:
    """Return the inputs a program was exported with, by name.

    Raises ``InputError`` where the archive carries none.
    """
    if exported.example_inputs is None:
        raise InputError(
            "the archive carries no example inputs to verify on",
            expected="inputs named " + ", ".join(input_names(exported)),
            hint="pass --inputs FILE.safetensors",
        )
    leaves = pytree.tree_leaves(exported.example_inputs)
    specs = exported.graph_signature.input_specs
    user = [spec.arg for spec in specs if spec.kind is InputKind.USER_INPUT]
    found: dict[str, Tensor] = {}
    for argument, leaf in zip(user, leaves, strict=False):
        if isinstance(leaf, Tensor) and not isinstance(argument, ConstantArgument):
            found[argument.name] = leaf.detach()
    missing = [name for name in input_names(exported) if name not in found]
    if missing:
        raise InputError(f"the archive's example inputs lack {missing[0]!r}", hint="pass --inputs")
    return found


def read_inputs(path: str | Path) -> dict[str, Tensor]:
    """Read named inputs from a safetensors file.

    Raises ``InputError`` for a file that is missing, damaged, or holds NaN.
    """
    try:
        tensors = load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"the inputs cannot be read: {error}",
            where=str(path),
            expected="a safetensors file with one tensor per input",
        ) from error
    check_numbers(tensors, str(path))
    return tensors


def check_numbers(tensors: Mapping[str, Tensor], where: str | None = None) -> None:
    """Raise ``InputError`` for an input that holds NaN: nothing could be compared on it."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and bool(torch.isnan(tensor).any()):
            raise InputError(f"input {name!r} holds NaN", where=where)


def fitting_inputs(
    given: str | Path | Mapping[str, object], signature: Signature
) -> dict[str, Tensor]:
    """Return the inputs of a file or a mapping once they fit a signature and hold no NaN."""
    if isinstance(given, Mapping):
        tensors = checked_inputs(given, signature)
        check_numbers(tensors)
        return tensors
    try:
        return checked_inputs(read_inputs(given), signature)
    except InputError as error:
        if str(given) not in (error.where or ""):
            error.where = f"{given}: {error.where}" if error.where else str(given)
        raise


def inputs_for(
    exported: ExportedProgram, given: str | Path | Mapping[str, object] | None
) -> dict[str, Tensor]:
    """Return the inputs of a file or a mapping, or the archive's own where nothing is given."""
    if given is None:
        given = example_inputs(exported)
    return fitting_inputs(given, signature_of(exported))


def check_merges(
    tensors: Mapping[str, Tensor], wanted: Sequence[Placeholders], given: object
) -> None:
    """Raise ``InputError`` where an item's placeholders do not fit; ``given`` is a file or not."""
    try:
        check_placeholders(tensors, wanted)
    except InputError as error:
        if isinstance(given, (str, Path)):
            error.where = f"{given}: {error.where}"
        raise


def inputs_needed(signature: Signature, where: str, otherwise: str = "") -> InputError:
    """Return the error for an artifact without inputs: it names those that are needed."""
    inputs = (f"{s.name}: {s.dtype} [{', '.join(map(str, s.shape))}]" for s in signature.inputs)
    return InputError(
        "there are no inputs to run on: an artifact carries none",
        where=where,
        expected=f"--inputs FILE.safetensors with {'; '.join(inputs)}{otherwise}",
        hint="safetensors.torch.save_file({name: tensor, ...}, 'inputs.safetensors')",
    )
