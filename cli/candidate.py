"""Candidate: the program of one budget on its way through a compile."""

from __future__ import annotations

from dataclasses import dataclass

from torch.export import ExportedProgram

from tokopt.cli.recorded import gate_result, recorded_budget
from tokopt.passes.budget_report import BudgetReport, Work
from tokopt.passes.validate import Checked, Verdict
from tokopt.targets.manifest import Variant
from tokopt.targets.signature import signature_of


@dataclass(frozen=True)
class Candidate:
    """One budget's program before it is lowered, ``asked`` for which budget, and its gates."""

    part: str
    asked: float | None
    note: str
    spent: BudgetReport
    work: Work
    checked: Checked
    verdicts: list[Verdict]
    final: ExportedProgram
    names: list[str]

    def recorded(self) -> Variant:
        """Return what the manifest says of it."""
        return Variant(
            self.part,
            signature_of(self.final, self.names),
            recorded_budget(self.asked, self.checked.plan, self.spent, self.work, self.verdicts),
            tuple(gate_result(v) for v in self.verdicts),
        )
