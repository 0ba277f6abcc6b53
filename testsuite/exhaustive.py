"""Exhaustive cases: what the default run takes a part of, and ``pytest -m exhaustive`` the rest.

CI runs both.  The part that is taken covers: every form and every plan is in some default case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest


def thinned(cases: Iterable[Any], every: int) -> list[Any]:
    """Return cases as parameters; by default the first of every ``every`` is run."""
    return [_param(case, at % every == 0) for at, case in enumerate(cases)]


def crossed(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """Return all pairs as parameters; by default each row and column is in one pair at least."""
    first, second = list(rows), list(columns)
    longest = max(len(first), len(second))
    default = {(at % len(first), at % len(second)) for at in range(longest)}
    return [
        _param((a, b), (i, j) in default) for i, a in enumerate(first) for j, b in enumerate(second)
    ]


def first_of(cases: Sequence[tuple[Any, ...]], every: int = 1) -> list[Any]:
    """Return cases as parameters; by default the first of those that begin alike is run.

    Of these the first of every ``every``.
    """
    names = list(dict.fromkeys(case[0] for case in cases))[::every]
    return [
        _param(c, c[0] in names and c[0] not in {b[0] for b in cases[:at]})
        for at, c in enumerate(cases)
    ]


def by_default(cases: Iterable[Any], run: Callable[[Any], bool]) -> list[Any]:
    """Return cases as parameters; by default those are run of which ``run`` is true."""
    return [_param(case, run(case)) for case in cases]


def _param(case: Any, default: bool) -> Any:
    values = case if isinstance(case, tuple) else (case,)
    return pytest.param(*values, marks=() if default else pytest.mark.exhaustive)
