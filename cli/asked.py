"""Asked: what a compile was asked for, checked before any work."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokopt.ir.errors import InputError
from tokopt.passes.search.effort import EFFORTS
from tokopt.targets.parts import part_of


@dataclass(frozen=True)
class Wanted:
    """What a person asks of a search; ``data`` None: the archive's example inputs.

    ``grid``: of patches, for methods that need one where the graph tells none.
    ``processor``: the folder or name of what makes inputs of ``data`` that is pictures and prompts.
    """

    data: str | Path | None = None
    effort: str = "default"
    trials: int | None = None
    storage: str | Path | None = None
    processor: str | None = None
    grid: str | None = None

    def __post_init__(self) -> None:
        """Raise ``InputError`` for what cannot be asked for."""
        if self.processor is not None and self.data is None:
            raise InputError("--processor without --calibration", expected="--calibration FOLDER")
        if self.effort not in EFFORTS:
            raise InputError(f"effort {self.effort!r}", expected=" or ".join(EFFORTS))
        if self.trials is not None and self.trials < 0:
            raise InputError(f"{self.trials} trials", expected="0 or more")
        if self.grid is not None and not re.fullmatch(r"[1-9][0-9]*x[1-9][0-9]*", self.grid):
            raise InputError(f"grid {self.grid!r}", expected="rows x columns, such as 24x24")


def checked_budgets(budget: float | Sequence[float] | None) -> tuple[float, ...]:
    """Return the budgets asked for.  ``InputError`` for one that is no share, or given twice."""
    if budget is None:
        return ()
    budgets = (budget,) if isinstance(budget, (int, float)) else tuple(budget)
    for one in budgets:
        if not 0 < one <= 1:
            raise InputError(f"budget {one}", expected="a share of the visual tokens, in (0, 1]")
    if len({part_of(one) for one in budgets}) < len(budgets) or not budgets:
        raise InputError(
            f"budgets {', '.join(f'{one:g}' for one in budgets) or 'none'}",
            expected="different ones, at least one",
        )
    return budgets


SEARCH = "search.json"
"""The file of an artifact that lists what a search judged, the best first."""


def refuse_beside_search(given: Mapping[str, object]) -> None:
    """Refuse what a search chooses itself; ``given`` is by option, None where it was not given."""
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"--{option} cannot be given with a search, which chooses it",
                expected="--calibration, --effort and --trials with --budget alone",
                hint=f"leave --{option} out, or leave out what asks for a search",
            )


def refuse_unjudged(attention: str | None) -> None:
    """Refuse a rewrite of attention beside a search, which judges plans without it."""
    if attention is not None:
        raise InputError(
            "--attention cannot be given with a search, which judges plans without it",
            expected="--attention with --budget and --method",
            hint="add an [[attention]] entry to the plan that the search finds",
        )


def refuse_beside_plan(given: Mapping[str, object]) -> None:
    """Refuse what a plan holds itself; ``given`` is by option, None where it was not given."""
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"--{option} cannot be given with --plan: the plan file holds it",
                expected=f"--plan without --{option}",
                hint=f"edit the plan file's {option}, or compile with --budget",
            )
