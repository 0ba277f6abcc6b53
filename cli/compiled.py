"""Compiled: what a compile made, and where it lies."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tokopt.ir.errors import GateError
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.passes.budget_report import BudgetReport, Work
from tokopt.targets.manifest import OK, Manifest


@dataclass(frozen=True)
class Compiled:
    """What a compile made: where it is, what it spends, what was checked.

    ``others``: the same of each further budget; ``manifest`` is as seen from this one.
    """

    folder: Path
    plan: Plan
    budget: BudgetReport
    work: Work
    manifest: Manifest
    note: str = ""
    others: tuple[Compiled, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every gate passed."""
        return self.manifest.status == OK


def require_ok(compiled: Compiled) -> None:
    """Raise ``GateError`` naming the first gate that failed, if any."""
    every = (compiled, *compiled.others)
    failed = [gate for one in every for gate in one.manifest.gates if not gate.passed]
    if failed:
        raise GateError(
            f"gate {failed[0].gate} failed: {failed[0].note or failed[0].compared}",
            where=str(compiled.folder),
            expected=f"a difference of at most {failed[0].tolerance}",
            hint="the artifact is kept and marked; report the folder, or try another plan",
        )


def default_folder(source: str | Path | Program) -> Path:
    """Return where an artifact goes by default: ``<model>.tokopt`` in the working directory."""
    name = source.source if isinstance(source, Program) else str(source)
    stem = Path(name).stem if not name.startswith("<") else "model"
    return Path(f"{stem}.tokopt")


def journal_of(folder: Path) -> Path:
    """Return the file beside an artifact's folder that a search goes on from if it is killed."""
    return folder.with_name(f"{folder.name}.search.log")
