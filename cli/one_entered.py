"""One entered: a model of one program, timed on whole prompts."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.entered import COMPILED, FLOOR, FLOOR_PART, ORIGINAL, Contest, Placed
from tokopt.cli.one_program import output_names
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan
from tokopt.ir.program import MAIN_NAMES, Program
from tokopt.passes.floor import floor_of
from tokopt.targets.base import Runner, Target
from tokopt.targets.parts import FIRST
from tokopt.targets.program_file import program_name, save_program
from tokopt.targets.refresh import Refresh
from tokopt.targets.runtime import Artifact
from tokopt.targets.signature import Signature

PARTS = {ORIGINAL: FIRST, FLOOR: FLOOR_PART}


@dataclass
class OneEntered:
    """``part``: that of the artifact's files."""

    joined: ExportedProgram
    given: Mapping[str, Tensor]
    target: Target
    artifact: Artifact
    part: str
    place: Path = Path()
    opened: dict[str, Runner] = field(default_factory=dict)

    @property
    def signatures(self) -> Sequence[Signature]:
        """What the artifact takes."""
        return (self.artifact.manifest.signature,)

    def own(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs, and zeros for what the artifact remembers.

        One that reuses rows is timed between two references.
        """
        given, refresh = with_memory(self.artifact.manifest.memory, inputs), self._refresh
        return given if refresh is None else {**given, refresh.age: torch.ones(1)}

    @property
    def _refresh(self) -> Refresh | None:
        return self.artifact.manifest.refresh

    def lower(self, plan: Plan, place: Path) -> None:
        """Write and open the original and a plan's floor."""
        self.place, programs = place, {ORIGINAL: self.joined, FLOOR: floor_of(self.joined, plan)}
        graphs = {program_name(MAIN_NAMES[0], PARTS[who]): one for who, one in programs.items()}
        stored = save_program(Program(graphs), place)
        for who, one in programs.items():
            with redirect_stdout(io.StringIO()):
                self.target.lower(one, place, output_names(one, 0), stored, PARTS[who])
            self.opened[who] = self.target.open(place, PARTS[who])

    def contests(self, inputs: Mapping[str, Tensor], tokens: int) -> list[Contest]:
        """Return whole prompts; such a program makes no tokens."""
        works = {
            ORIGINAL: partial(self.opened[ORIGINAL], inputs),
            COMPILED: partial(self.artifact.runner, self.own(inputs)),
            FLOOR: partial(self.opened[FLOOR], inputs),
        }
        return [Contest("prompt", works)]

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Placed]:
        """Return all three."""
        return {
            ORIGINAL: Placed(self.place, PARTS[ORIGINAL], inputs),
            COMPILED: Placed(self.artifact.folder, self.part, self.own(inputs)),
            FLOOR: Placed(self.place, PARTS[FLOOR], inputs),
        }
