"""Candidate: the program of one budget on its way through a compile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.recorded import Costs, gate_result, recorded_budget
from tokopt.cli.whole import Rewritten
from tokopt.ir.errors import UnsupportedError
from tokopt.passes.budget_report import BudgetReport, Work
from tokopt.passes.validate import Checked, Verdict
from tokopt.targets.manifest import CachedLayer, Variant


@dataclass(frozen=True)
class Piece:
    """One program that is lowered: its files' part, and inputs that its gates run on.

    ``prompt``: these inputs before they were padded to its length, where they were.  ``names``:
    its outputs', where they are not those of the budget; ``checked``: what it must compute, where
    that is not what the budget's program must.
    """

    part: str
    program: ExportedProgram
    inputs: Mapping[str, Tensor]
    prompt: Mapping[str, Tensor] = field(default_factory=dict)
    names: Sequence[str] = ()
    checked: Checked | None = None


@dataclass(frozen=True)
class Candidate:
    """One budget's programs, what was asked and is spent, and its gates.

    ``stored``: how each layer stores its cache; empty where that is in full.
    """

    costs: Costs
    note: str
    spent: BudgetReport
    work: Work
    checked: Checked
    rewritten: Rewritten
    verdicts: list[Verdict]
    stored: Sequence[CachedLayer] = ()

    def recorded(self) -> Variant:
        """Return what the manifest says of it."""
        plan = self.checked.plan
        spent = (self.spent, self.work, self.verdicts, self.stored)
        budget = recorded_budget(self.costs, plan, *spent)
        return self.rewritten.entry(budget, [gate_result(v) for v in self.verdicts])


def graphs_of(made: Sequence[Candidate]) -> dict[str, ExportedProgram]:
    """Return the programs of every budget by their names in ``program.pt2``."""
    graphs: dict[str, ExportedProgram] = {}
    for one in made:
        for name, graph in one.rewritten.graphs.items():
            if name in graphs:
                raise UnsupportedError(
                    f"two programs would be {name!r}: one's name ends like a budget",
                    expected="programs of other names, or one budget",
                )
            graphs[name] = graph
    return graphs
