"""Capture: a model made ready for tracing, what it must equal, and the tracing itself.

``torch.export`` in non-strict mode runs the model's own Python; what it records is what the model
did on the sample.  Whether that is the model is not a matter of trust: every captured program is
compared with the plain model, called as its library means it to be, on inputs it was not traced
with (other values, other image places, other sizes where these are free).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from tokopt.ir.errors import UnsupportedError

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Capture:
    """A module to trace and the plain model it must equal.

    ``module`` and ``reference`` are both called as ``f(*inputs)`` and return one tensor; the
    reference computes by itself what the module gets as constants or inputs.  ``dynamic_shapes``
    is as for ``torch.export.export``.  ``facts`` are for the report (sizes the graph is built for).
    ``padding`` is the place of the input that is 0 where rows ``[B,S]`` of the output mean nothing.
    """

    module: nn.Module
    reference: nn.Module
    inputs: Inputs
    others: tuple[Inputs, ...]
    dynamic_shapes: tuple[dict[int, Any], ...] | None
    facts: Mapping[str, int | str]
    padding: int | None = None

    def trace(self) -> ExportedProgram:
        """Trace the module; raise ``UnsupportedError`` where ``torch.export`` cannot."""
        return traced(self.module, self.inputs, self.dynamic_shapes)

    def differences(self, exported: ExportedProgram) -> dict[str, float]:
        """Return the largest difference to the reference, for each input by its shapes.

        Absolute, divided by the reference's largest value where that exceeds 1; ``inf`` where an
        output has the wrong shape or is not finite.
        """
        module, found = exported.module(), {}
        for index, inputs in enumerate((self.inputs, *self.others)):
            with torch.no_grad():
                got, want = run_captured(module, inputs), self.reference(*inputs)
            if self.padding is not None and got.shape == want.shape:
                kept = inputs[self.padding].bool()
                got, want = got[kept], want[kept]
            shapes = " ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
            found[f"sample {index} ({shapes})"] = largest_difference(got, want)
        return found


def traced(
    module: nn.Module, inputs: Inputs, dynamic_shapes: tuple[Any, ...] | None
) -> ExportedProgram:
    """Trace a module; raise ``UnsupportedError`` where ``torch.export`` cannot.

    Whether the model is at fault or the tracing is seen by calling the module without tracing.
    """
    try:
        with torch.no_grad():
            exported = torch.export.export(
                module, inputs, dynamic_shapes=dynamic_shapes, strict=False
            )
    except Exception as error:
        refuse_uncallable(module, inputs)
        raise UnsupportedError(
            "torch.export cannot capture this model",
            where=raised(error),
            expected="a model whose control flow does not depend on tensor values",
            hint="leave out --dynamic; if that fails too, report the model's config.json",
        ) from error

    # The range of a size like 2*batch follows from that of batch; an archive names symbols.
    for size in [s for s in exported.range_constraints if not s.is_Symbol]:
        del exported.range_constraints[size]
    return exported


def refuse_uncallable(module: nn.Module, inputs: Inputs) -> None:
    """Raise ``UnsupportedError`` where the module fails without any tracing.

    Some releases of a model library cannot run a model of their own; nothing said of tracing
    would help there.
    """
    try:
        with torch.no_grad():
            module(*inputs)
    except Exception as error:
        raise UnsupportedError(
            "this model fails when it is called, before any tracing",
            where=raised(error),
            expected="a model that runs on one image and a prompt in the installed libraries",
            hint="try another version of transformers (one in which this model's own example runs)",
        ) from error


def raised(error: Exception) -> str:
    """Return an exception's type and the first line of its text."""
    lines = str(error).strip().splitlines() or ["(no text)"]
    return f"{type(error).__name__}: {lines[0][:300]}"


def run_captured(module: nn.Module, inputs: Inputs) -> Any:
    """Run the captured module; sizes its own guards refuse are a capture that failed."""
    try:
        return module(*inputs)
    except AssertionError as error:  # what torch.export's guards raise
        raise UnsupportedError(
            "the captured program does not run at other sizes",
            where=str(error).strip().splitlines()[0][:300],
            expected="a model whose sizes do not decide what it does",
            hint="leave out --dynamic, or leave less free",
        ) from error


def largest_difference(got: Tensor, want: Tensor) -> float:
    """Return max |got - want| / max(1, max |want|) in fp32; ``inf`` if not comparable."""
    if got.shape != want.shape:
        return math.inf
    got, want = got.float(), want.float()
    scale = max(1.0, float(want.abs().max()))
    difference = float((got - want).abs().max()) / scale
    return difference if math.isfinite(difference) else math.inf
