"""Placing: one method in one stack, its published sites and counts scaled to a budget.

A schedule's counts never shrink when its last count grows, so the largest keep within a budget is
found by bisection and is within one token (or group) of it.  Where even the smallest keep spends
too much (a stage entering layer k of L cannot go below k/L), all sites move towards the entry by
one common factor, no further than needed.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.sites import Site
from tokopt.passes.budget import row_count, rows_after, rows_arriving
from tokopt.passes.methods.method import Method, Placement, Setting


class Placing:
    """One method in one stack: its placements for a last count, and what they spend."""

    def __init__(
        self, facts: Facts, stack: TokenStack, method: Method, entropies: Sequence[float] | None
    ) -> None:
        self.method, self.stack = method, stack
        self.kind = stack.role.rstrip("0123456789")
        _check_needs(method, stack, self.kind)
        self.consumer = facts.consumer
        self.layers, self.count = len(stack.stack.layers), row_count(stack)
        if entropies is not None and len(entropies) != self.layers:
            raise InputError(
                f"{len(entropies)} entropies are given for {stack.role}",
                expected=f"one per layer ({self.layers})",
            )
        self.entropies = None if entropies is None else tuple(entropies)
        legal = [site for site in stack.sites if site.legal]
        self.group = max((site.group for site in legal), default=1)
        if method.combine is not None:
            refuse_groups(method.name, stack.role, self.group)
        self._refuse_barrier(self._published(self.group))
        self.arriving = partial(rows_arriving, facts, stack, legal[-1])
        self.arriving(self.group)  # refused where no rows of the consumer come from here

    def within(self, limit: Fraction) -> tuple[tuple[Placement, ...], str, Fraction]:
        """Return the placements of the largest keep within the limit, why moved, the spend.

        The second is empty where the placements are the published ones.
        """
        least = Fraction(1)
        for factor in self._factors():
            smallest = self._placed(self.group, factor)
            if any(not self.site(p.depth).legal for p in smallest):
                continue
            least = min(least, self._spend(smallest))
            if self._spend(smallest) <= limit:
                keeps = range(self.group, self.count + 1, self.group)
                at = bisect_right(keeps, limit, key=lambda k: self._spend(self._placed(k, factor)))
                chosen = self._placed(keeps[at - 1], factor)
                moved = "" if factor == 1 else self._moved(chosen, limit)
                return chosen, moved, self._spend(chosen)
        raise BudgetError(
            f"{self.method.name} in {self.stack.role} cannot meet the budget {float(limit):g}",
            expected=f"at least {float(least):.4g}, the smallest it can reach ({least})",
            hint="a method placed earlier, or in the tower, reaches less",
        )

    def site(self, depth: int) -> Site:
        """Return the site entering a layer, or at the end."""
        found = next((s for s in self.stack.sites if s.depth == depth), None)
        if found is None:
            raise UnsupportedError(
                f"{self.method.name}: {self.stack.role} has no site at depth {depth}",
                expected="one of " + ", ".join(s.name for s in self.stack.sites),
            )
        return found

    def _published(self, keep: int) -> tuple[Placement, ...]:
        counted = self.stack is self.consumer
        return self.method.schedule(
            Setting(self.kind, self.layers, self.count, keep, self.group, counted, self.entropies)
        )

    def _factors(self) -> Iterator[Fraction]:
        deepest = max(p.depth for p in self._published(self.group))
        first = 1 if "layers" in self.method.needs else 0
        yield Fraction(1)
        yield from (Fraction(depth, deepest) for depth in range(deepest - 1, first - 1, -1))

    def _placed(self, keep: int, factor: Fraction) -> tuple[Placement, ...]:
        """Return the placements with sites moved; of several on one site the last holds."""
        first = 1 if "layers" in self.method.needs else 0
        moved: dict[int, Placement] = {}
        for place in self._published(keep):
            depth = max(round(place.depth * factor), min(first, place.depth))
            moved[depth] = Placement(depth, place.keep)
        return tuple(moved.values())

    def _moved(self, placements: tuple[Placement, ...], limit: Fraction) -> str:
        """Return which sites moved, and that the budget could not be met where they were."""
        published = self._published(placements[-1].keep)
        before, after = (
            ", ".join(self.site(p.depth).name for p in places) for places in (published, placements)
        )
        least = float(self._spend(self._placed(self.group, Fraction(1))))
        return (
            f"{self.method.name} moved from {before} to {after}: where it is published, the least "
            f"it can spend is {least:.4g}, more than the budget {float(limit):g}"
        )

    def _spend(self, placements: tuple[Placement, ...]) -> Fraction:
        own = self.stack is self.consumer
        total = row_count(self.consumer)
        cuts = [(p.depth if own else 0, self.arriving(p.keep)) for p in placements]
        rows = rows_after(total, len(self.consumer.stack.layers), cuts)
        return Fraction(sum(rows), total * len(rows))

    def _refuse_barrier(self, placements: tuple[Placement, ...]) -> None:
        blocked = next(
            (self.site(p.depth) for p in placements if not self.site(p.depth).legal), None
        )
        if blocked is not None:
            legal = (
                ", ".join(s.name for s in self.stack.sites if s.legal) or "no other of this stack"
            )
            raise UnsupportedError(
                f"{self.method.name} cannot be placed at {blocked.name}: {blocked.barrier}",
                expected=f"a legal site: {legal}",
            )


def refuse_groups(method: str, where: str, group: int) -> None:
    """Refuse a method that folds rows where rows leave in groups of ``group``."""
    if group != 1:
        raise UnsupportedError(
            f"{method} folds single rows, and at {where} rows leave in groups of {group}",
            expected="a site where rows leave one by one",
            hint="place it where the groups are rows: behind the merger, in the decoder",
        )


def _check_needs(method: Method, stack: TokenStack, kind: str) -> None:
    if kind not in method.roles:
        raise UnsupportedError(
            f"{method.name} is not made for {stack.role}",
            expected=" or ".join(sorted(method.roles)),
        )
    if "relay" in method.needs and stack.relay is None:
        raise UnsupportedError(
            f"{method.name} needs a relay row, and {stack.role} has none (no class token)",
            hint="flowcut does without",
        )
