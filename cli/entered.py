"""Entered: who runs in a benchmark: the original, the artifact and the token floor.

``OneEntered`` and ``SeparateEntered`` lower the original and its floor for the artifact's target,
into one folder over one set of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.plan import Plan
from tokopt.targets.signature import Signature

ORIGINAL, COMPILED, FLOOR = "original", "compiled", "floor"
FLOOR_PART = "-floor.0"
"""The files' part of the floor, beside those of the original; no program's name has a dot."""


@dataclass(frozen=True)
class Contest:
    """One piece of work by who does it; behind a prompt no rows go, so there is no floor."""

    what: str
    works: Mapping[str, Callable[[], object]]


@dataclass(frozen=True)
class Placed:
    """A lowered program's files, and what it is given."""

    folder: Path
    part: str
    inputs: Mapping[str, Tensor]


class Entered(Protocol):
    """A model, the artifact that was made of it, and inputs that fit both."""

    @property
    def joined(self) -> ExportedProgram:
        """What the plan was made for, in normal form."""

    @property
    def given(self) -> Mapping[str, Tensor]:
        """The inputs of all programs."""

    @property
    def signatures(self) -> Sequence[Signature]:
        """What each program takes."""

    def own(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return those inputs that the joined program takes."""

    def lower(self, plan: Plan, place: Path) -> None:
        """Write the original and a plan's floor into a folder."""

    def contests(self, inputs: Mapping[str, Tensor], tokens: int) -> list[Contest]:
        """Return what is timed; ``tokens``: how many are made behind a prompt."""

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Placed]:
        """Return the programs whose memory is measured, by what they are called."""
