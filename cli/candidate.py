"""Candidate: the program of one budget on its way through a compile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.recorded import Costs, gate_result, recorded_budget
from tokopt.passes.budget_report import BudgetReport, Work
from tokopt.passes.validate import Checked, Verdict
from tokopt.targets.manifest import Variant
from tokopt.targets.padding import Padding
from tokopt.targets.signature import signature_of


@dataclass(frozen=True)
class Piece:
    """One program that is lowered: its files' part, and inputs that its gates run on.

    ``prompt``: these inputs before they were padded to its length, where they were.
    """

    part: str
    program: ExportedProgram
    inputs: Mapping[str, Tensor]
    prompt: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """One budget's program, what was asked and is spent, and its gates.

    ``pieces`` are lowered: ``final`` itself, or what it is for each of several prompt lengths.
    """

    part: str
    costs: Costs
    note: str
    spent: BudgetReport
    work: Work
    checked: Checked
    verdicts: list[Verdict]
    final: ExportedProgram
    names: list[str]
    pieces: tuple[Piece, ...]
    padding: Padding | None = None

    def recorded(self) -> Variant:
        """Return what the manifest says of it."""
        return Variant(
            self.part,
            signature_of(self.final, self.names),
            recorded_budget(self.costs, self.checked.plan, self.spent, self.work, self.verdicts),
            tuple(gate_result(v) for v in self.verdicts),
            self.checked.applied.memory,
            self.padding,
        )
