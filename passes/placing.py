"""Placing: one method in one stack, its published sites and counts scaled to a budget.

A schedule's counts never shrink when its last count grows, so the largest keep within a budget is
found by bisection.  Where the next larger keep would spend many tokens more (several stages grow at
once), stages are raised towards its counts, the first stage first, as far as the budget allows: the
plan is within one token (or group) of it.  Where even the smallest keep spends
too much (a stage entering layer k of L cannot go below k/L), all sites move towards the entry by
one common factor, no further than needed.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from fractions import Fraction
from functools import partial

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.sites import Site
from tokopt.passes.budget import consumer_rows, row_count, rows_arriving
from tokopt.passes.instead import instead, reads
from tokopt.passes.methods.method import Method, Placement, Setting

BEFORE = -1
"""The depth of a placement that stands for the stages in the tower; its keep is what arrives."""


class Placing:
    """One method in one stack: its placements for a last count, and what they spend.

    ``before`` is its placing in the tower that feeds the stack, where it has stages in both.
    """

    def __init__(
        self,
        facts: Facts,
        stack: TokenStack,
        method: Method,
        entropies: Sequence[float] | None,
        before: Placing | None = None,
    ) -> None:
        self.method, self.stack, self.before = method, stack, before
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
        deepest = max(place.depth for place in self._published(self.group))
        self.group = self.site(deepest).group if self.site(deepest).legal else self.group
        if method.combine is not None:
            refuse_groups(method.name, stack.role, self.group, instead(stack.role))
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
            if any(not self._fits(self.site(p.depth)) for p in smallest if p.depth != BEFORE):
                continue
            least = min(least, self._spend(smallest))
            if self._spend(smallest) <= limit:
                keeps = range(self.group, self.count + 1, self.group)
                at = bisect_right(keeps, limit, key=lambda k: self._spend(self._placed(k, factor)))
                chosen = self._placed(keeps[at - 1], factor)
                if at < len(keeps):
                    chosen = self._raised(chosen, self._placed(keeps[at], factor), limit)
                moved = "" if factor == 1 else self._moved(chosen, limit)
                return chosen, moved, self._spend(chosen)
        raise BudgetError(
            f"{self.method.name} in {self.stack.role} cannot meet the budget {float(limit):g}",
            expected=f"at least {float(least):.4g}, the smallest it can reach ({least})",
            hint="a method placed earlier, or in the tower, reaches less",
        )

    def reaching(self, rows: int) -> tuple[Placement, ...]:
        """Return the placements of the smallest keep of which so many rows arrive, or of all."""
        keeps = range(self.group, self.count + 1, self.group)
        at = bisect_left(keeps, rows, key=self.arriving)
        return self._published(keeps[min(at, len(keeps) - 1)])

    def stages(self, placements: Sequence[Placement]) -> list[tuple[str, int]]:
        """Return the site and the keep of each stage, those of the tower first."""
        found: list[tuple[str, int]] = []
        for place in placements:
            if place.depth == BEFORE and self.before is not None:
                found += self.before.stages(self.before.reaching(place.keep))
            else:
                found.append((self.site(place.depth).name, place.keep))
        return found

    def site(self, depth: int) -> Site:
        """Return the site entering a layer, or at the end."""
        found = next((s for s in self.stack.sites if s.depth == depth), None)
        if found is None:
            raise UnsupportedError(
                f"{self.method.name}: {self.stack.role} has no site at depth {depth}",
                expected="one of " + ", ".join(s.name for s in self.stack.sites),
            )
        return found

    def _fits(self, site: Site) -> bool:
        """Return whether rows may leave at a site, in the groups of the method's last one."""
        return site.legal and site.group == self.group

    def _published(self, keep: int) -> tuple[Placement, ...]:
        return self.method.schedule(self._setting(keep))

    def _setting(self, keep: int) -> Setting:
        counted = self.stack is self.consumer
        return Setting(
            self.kind,
            self.layers,
            self.count,
            keep,
            self.group,
            counted,
            self.entropies,
            self.before is not None,
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
        places = tuple(moved.values())
        if self.before is None or self.method.tower_rows is None:
            return places
        rows = max(self.method.tower_rows(self._setting(keep)), places[0].keep)
        return (Placement(BEFORE, rows), *places)

    def _raised(
        self, chosen: tuple[Placement, ...], above: tuple[Placement, ...], limit: Fraction
    ) -> tuple[Placement, ...]:
        """Return placements within the limit, between two whose last counts are neighbours."""
        if [p.depth for p in chosen] != [p.depth for p in above]:
            return chosen
        for at, high in enumerate(above):
            most = min(high.keep, chosen[at - 1].keep) if at else high.keep
            for keep in range(most, chosen[at].keep, -self.group):
                tried = (*chosen[:at], Placement(high.depth, keep), *chosen[at + 1 :])
                if self._spend(tried) <= limit:
                    chosen = tried
                    break
        return chosen

    def _moved(self, placements: tuple[Placement, ...], limit: Fraction) -> str:
        """Return which sites moved, and that the budget could not be met where they were."""
        published = self._placed(placements[-1].keep, Fraction(1))
        before, after = (
            ", ".join(name for name, _ in self.stages(places)) for places in (published, placements)
        )
        least = float(self._spend(self._placed(self.group, Fraction(1))))
        return (
            f"{self.method.name} moved from {before} to {after}: where it is published, the least "
            f"it can spend is {least:.4g}, more than the budget {float(limit):g}"
        )

    def _spend(self, placements: tuple[Placement, ...]) -> Fraction:
        own = self.stack is self.consumer
        total = row_count(self.consumer)
        cuts = [
            (p.depth if own and p.depth != BEFORE else 0, self._arriving(p)) for p in placements
        ]
        rows = consumer_rows(self.consumer, cuts)
        return Fraction(sum(rows), total * len(rows))

    def _arriving(self, place: Placement) -> int:
        """Return the rows of the consumer that a placement leaves."""
        if place.depth == BEFORE and self.before is not None:
            return self.before.arriving(self.before.reaching(place.keep)[-1].keep)
        return int(self.arriving(place.keep))

    def _refuse_barrier(self, placements: tuple[Placement, ...]) -> None:
        sites = (self.site(place.depth) for place in placements)
        blocked = next((site for site in sites if not self._fits(site)), None)
        if blocked is not None:
            fit = ", ".join(s.name for s in self.stack.sites if self._fits(s))
            groups = f"rows leave there in groups of {blocked.group}, later of {self.group}"
            raise UnsupportedError(
                f"{self.method.name} cannot be placed at {blocked.name}: "
                f"{blocked.barrier or groups}",
                expected=f"a legal site: {fit or 'no other of this stack'}",
            )


def refuse_groups(method: str, where: str, group: int, hint: str = "") -> None:
    """Refuse a method that folds rows where rows leave in groups of ``group``."""
    if group != 1:
        raise UnsupportedError(
            f"{method} folds single rows, and at {where} rows leave in groups of {group}",
            expected="a site where rows leave one by one",
            hint=hint or "behind a merger the groups are rows: place it in the decoder",
        )


def _check_needs(method: Method, stack: TokenStack, kind: str) -> None:
    if kind not in method.roles:
        raise UnsupportedError(
            f"{method.name} is not made for {stack.role}: it reads {reads(method)}",
            expected=" or ".join(sorted(method.roles)),
            hint=instead(stack.role),
        )
    if "relay" in method.needs and stack.relay is None:
        raise UnsupportedError(
            f"{method.name} needs a relay row, and {stack.role} has none (no class token)",
            hint=instead(stack.role),
        )
