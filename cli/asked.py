"""Asked: what a compile was asked for, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tokopt.ir.errors import InputError
from tokopt.targets.parts import part_of


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


def refuse_beside_plan(given: Mapping[str, object]) -> None:
    """Refuse what a plan holds itself; ``given`` is by option, None where it was not given."""
    for option, value in given.items():
        if value is not None:
            raise InputError(
                f"--{option} cannot be given with --plan: the plan file holds it",
                expected=f"--plan without --{option}",
                hint=f"edit the plan file's {option}, or compile with --budget",
            )
