"""Spec: a condition on programs with a name, that a pass requires or ensures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tokopt.ir.program import Program
from tokopt.ir.structure import normal_faults


@dataclass(frozen=True)
class Spec:
    """``faults(program)`` returns each violation in words, empty where the condition holds.

    ``name`` is a past participle (``normalized``); ``hint`` says what makes a program so.
    """

    name: str
    faults: Callable[[Program], tuple[str, ...]]
    hint: str = ""


def _normal_faults(program: Program) -> tuple[str, ...]:
    return tuple(
        f"{name}: {fault}"
        for name, exported in program.graphs.items()
        for fault in normal_faults(exported)
    )


NORMALIZED = Spec("normalized", _normal_faults, "run the pass normalize first")
"""Every graph is functional and holds nothing dead: what all passes but ``normalize`` read."""


MADE = "made_by_normalize"
"""A node's meta says so where the call computes what the archive's graph computes otherwise."""
