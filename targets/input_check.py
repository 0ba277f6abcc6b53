"""Check what a caller gives against a signature: nothing is cast, cropped or ignored silently."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.targets.signature import Signature, TensorSpec


def checked_inputs(inputs: Mapping[str, object], signature: Signature) -> dict[str, Tensor]:
    """Return ``inputs`` as tensors in the signature's order.

    Takes torch tensors and numpy arrays.  ``InputError`` names the input, what was given and
    what was expected: missing or unknown names, another dtype, rank or size, a symbolic size
    that two inputs disagree on or that is out of its range.
    """
    known = [spec.name for spec in signature.inputs]
    for name in inputs:
        if name not in known:
            raise InputError(f"unknown input {name!r}", expected="only " + ", ".join(known))
    sizes: dict[str, tuple[int, str]] = {}
    found = {}
    for spec in signature.inputs:
        if spec.name not in inputs:
            raise InputError(f"the input {spec.name!r} is missing", expected=_text(spec))
        found[spec.name] = _tensor(inputs[spec.name], spec)
        _check_shape(found[spec.name], spec, signature, sizes)
    return found


def _tensor(value: object, spec: TensorSpec) -> Tensor:
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.require(value, requirements=["C", "W"]))
        except (TypeError, ValueError) as error:  # strings, objects, foreign byte orders
            raise _mismatch(spec, f"a numpy array of {value.dtype}") from error
    if not isinstance(value, Tensor):
        raise _mismatch(spec, f"a {type(value).__name__}")
    if str(value.dtype) != f"torch.{spec.dtype}":
        raise _mismatch(
            spec, _given(value), "convert it first: tokopt does not change a dtype silently"
        )
    return value


def _check_shape(
    value: Tensor, spec: TensorSpec, signature: Signature, sizes: dict[str, tuple[int, str]]
) -> None:
    if value.dim() != len(spec.shape):
        raise _mismatch(spec, _given(value))
    for axis, (size, wanted) in enumerate(zip(value.shape, spec.shape, strict=True)):
        if isinstance(wanted, int):
            if size != wanted:
                raise _mismatch(spec, _given(value))
            continue
        if wanted not in signature.ranges:  # an expression over symbols: the program checks it
            continue
        least, greatest = signature.ranges[wanted]
        if size < least or (greatest is not None and size > greatest):
            raise _mismatch(
                spec,
                _given(value),
                f"{wanted} (axis {axis}) must be from {least} to {greatest or 'any size'}",
            )
        first, where = sizes.setdefault(wanted, (size, f"axis {axis} of {spec.name!r}"))
        if size != first:
            raise _mismatch(spec, _given(value), f"{wanted} is {first} at {where}")


def _mismatch(spec: TensorSpec, given: str, hint: str | None = None) -> InputError:
    return InputError(
        f"the input {spec.name!r} does not fit", where=given, expected=_text(spec), hint=hint
    )


def _given(value: Tensor) -> str:
    return f"given {str(value.dtype).removeprefix('torch.')} {list(value.shape)}"


def _text(spec: TensorSpec) -> str:
    return f"{spec.dtype} [{', '.join(map(str, spec.shape))}]"
