"""Remarks: what a rewriting pass says of the places it did not rewrite.

A rule that silently never matches is the commonest fault of a rewriter.  A pass collects a ``Miss``
per candidate and, where it rewrote none, remarks on the one that came nearest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import fx

from tokopt.ir.dims import describe


@dataclass(frozen=True)
class Miss:
    """One candidate that was refused at ``node`` after ``held`` conditions held."""

    node: fx.Node
    held: int
    reason: str


def nearest_miss(rule: str, misses: Iterable[Miss]) -> str:
    """Return a remark on the candidate that met most conditions (the first of equals)."""
    candidates = list(misses)
    if not candidates:
        return f"{rule}: no candidate"
    best = max(candidates, key=lambda miss: miss.held)
    return (
        f"{rule}: none of {len(candidates)} candidates matched; nearest: {describe(best.node)}, "
        f"where {best.held} conditions held, then: {best.reason}"
    )
