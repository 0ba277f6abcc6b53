"""Compare two sets of named outputs: what differs most, by how much, where.

A difference is allowed up to ``absolute + relative · max |reference|``, one number per output;
both are the row of ``ir/tolerances.py`` for the reference's dtype unless given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.ir.tolerances import tolerance_of


@dataclass(frozen=True)
class Tolerance:
    """Allowed difference: ``absolute`` plus ``relative`` times the largest reference value."""

    absolute: float
    relative: float


EXACT = Tolerance(0.0, 0.0)
SMALLEST = math.ulp(0.0)  # for integers that differ but not as double


@dataclass(frozen=True)
class Difference:
    """How one output differs: ``max_difference`` (absolute, inf where not comparable) at ``index``.

    ``problem`` says in words what is not comparable (missing, another shape or dtype).
    """

    name: str
    max_difference: float
    allowed: float
    index: tuple[int, ...] = ()
    reference: float | None = None
    got: float | None = None
    problem: str = ""

    @property
    def within(self) -> bool:
        """Whether the difference is allowed."""
        return not self.problem and self.max_difference <= self.allowed

    def __str__(self) -> str:
        if self.problem:
            return f"{self.name}: {self.problem}"
        return (
            f"{self.name}{list(self.index)}: {self.got} instead of {self.reference}; "
            f"differs by {self.max_difference:.3g}, allowed {self.allowed:.3g}"
        )


def compare(
    reference: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    tolerance: Tolerance | None = None,
) -> list[Difference]:
    """Return the outputs that differ by more than allowed, in the reference's order."""
    return [d for d in differences(reference, got, tolerance) if not d.within]


def differences(
    reference: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    tolerance: Tolerance | None = None,
) -> list[Difference]:
    """Return the difference of every output, allowed or not; outputs only in ``got`` come last.

    ``tolerance`` replaces the table for floating-point outputs.  NaN equals NaN and an infinity
    equals itself; any other pair with one of them differs by infinity.
    """
    found = []
    for name, wanted in reference.items():
        if name in got:
            pair = wanted.detach().cpu(), got[name].detach().cpu()
            found.append(_difference(name, *pair, tolerance))
        else:
            found.append(_incomparable(name, "is missing"))
    extra = [name for name in got if name not in reference]
    return found + [_incomparable(name, "is not expected") for name in extra]


def _difference(name: str, wanted: Tensor, got: Tensor, tolerance: Tolerance | None) -> Difference:
    for label, is_, expected in (
        ("shape", list(got.shape), list(wanted.shape)),
        ("dtype", got.dtype, wanted.dtype),
    ):
        if is_ != expected:
            return _incomparable(name, f"has {label} {is_} instead of {expected}")
    if wanted.numel() == 0:
        return Difference(name, 0.0, 0.0)
    floating = wanted.is_floating_point()
    known = tolerance_of(wanted.dtype)
    limits = (tolerance or Tolerance(known, known)) if floating else EXACT
    same = (wanted == got) | (wanted.isnan() & got.isnan())
    gap = (wanted.double() - got.double()).abs().nan_to_num(nan=math.inf, posinf=math.inf)
    gap = gap.clamp(min=SMALLEST).masked_fill(same, 0.0)
    place = int(gap.argmax())
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(place), wanted.shape))
    finite = wanted[wanted.isfinite()].double().abs()
    largest = float(finite.max()) if finite.numel() else 0.0
    return Difference(
        name,
        float(gap.flatten()[place]),
        limits.absolute + limits.relative * largest,
        index,
        float(wanted[index]),
        float(got[index]),
    )


def _incomparable(name: str, problem: str) -> Difference:
    return Difference(name, math.inf, 0.0, problem=problem)
