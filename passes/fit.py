"""Fit: the plan of one method at one budget, at its published placement as far as that reaches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan, Stage
from tokopt.passes.block_tap import stack_blocks
from tokopt.passes.instead import instead, reads
from tokopt.passes.methods.asked import Options
from tokopt.passes.methods.method import STACKS, Method
from tokopt.passes.placed import stack_places
from tokopt.passes.placing import Placing
from tokopt.passes.tower_tap import feeder_of

Entropies = Mapping[str, Sequence[float]]

_UNCALIBRATED = "{} is not calibrated: its counts per layer are its paper's, not measured on inputs"


@dataclass(frozen=True)
class Fitted:
    """A plan that meets a budget.  ``spent`` is what it spends, exactly.

    ``note`` is empty, or says what is not as published: sites that moved, rows that were not
    calibrated.
    """

    plan: Plan
    note: str
    spent: Fraction


def fit(
    facts: Facts,
    method: Method,
    budget: float,
    entropies: Entropies | None = None,
    *,
    role: str | None = None,
    seed: int = 0,
    options: Options | None = None,
) -> Fitted:
    """Place a method within a budget in ``(0, 1]``, in the stack ``role`` or the first that allows.

    Towers that feed the decoder come before the decoder.  ``entropies`` are r_H per layer, by role.
    Raises ``InputError`` for a bad budget, ``UnsupportedError`` naming the barrier where no
    placement is legal, ``BudgetError`` naming the smallest budget that can be reached.
    """
    limit = _limit(budget)
    refusals: list[UnsupportedError | InputError] = []
    for stack in _stacks(facts, method, role, options or {}):
        try:
            needed = method.needed(options or {})
            if "places" in needed:
                stack_places(facts, stack, options or {})
            if "blocks" in needed:
                stack_blocks(facts, stack, method.name)
            if "tower" in needed:
                feeder_of(facts, stack, method.name)
        except (UnsupportedError, InputError) as refusal:  # a stated grid may fit another stack
            refusals.append(refusal)
            continue
        try:
            before, alone = _before(facts, stack, method, entropies or {}, options or {})
            given = (entropies or {}).get(stack.role)
            placing = Placing(facts, stack, method, given, before)
            placements, moved, spends = placing.within(limit)
        except UnsupportedError as refusal:
            refusals.append(refusal)
            continue
        stages = tuple(
            Stage(
                site, method.name, keep, {k: v for k, v in (options or {}).items() if k != STACKS}
            )
            for site, keep in placing.stages(placements)
        )
        parts = [part for part in (before, placing) if part is not None]
        plain = any(part.kind in method.calibrated and part.entropies is None for part in parts)
        uncalibrated = _UNCALIBRATED.format(method.name) if plain else ""
        note = "; ".join(filter(None, (alone, moved, uncalibrated)))
        return Fitted(Plan(stages, budget, seed), note, spends)
    raise refusals[0]


def _in_both(method: Method, options: Options) -> bool:
    """Return whether a method is to have stages in a tower and in the decoder."""
    value = options.get(STACKS, method.options.get(STACKS, "one"))
    if value not in ("one", "both"):
        raise InputError(f"{method.name}: {STACKS} = {value!r}", expected="'one' or 'both'")
    return value == "both"


def _before(
    facts: Facts, stack: TokenStack, method: Method, entropies: Entropies, options: Options
) -> tuple[Placing | None, str]:
    """Return a method's placing in the tower that feeds a stack, or why there is none."""
    if not _in_both(method, options) or stack is not facts.consumer or stack.boundary is None:
        return None, ""
    feeder = facts.feeder(stack) if stack.merge is not None else None
    why = "no tower's rows are merged into " + stack.role
    if feeder is not None and not feeder[2].holes:
        why = "rows leave there in other units than in " + stack.role
    elif feeder is not None:
        tower = feeder[0]
        try:
            return Placing(facts, tower, method, entropies.get(tower.role)), ""
        except UnsupportedError as refusal:
            why = refusal.what
    return None, f"{method.name} is without its stage in the tower: {why}"


def _stacks(facts: Facts, method: Method, role: str | None, options: Options) -> list[TokenStack]:
    """Return the stacks to try, in order of the data: towers come before the decoder.

    A method for both is placed in the decoder, its stages in the tower with it.
    """
    if role is not None:
        found = [stack for stack in facts.stacks if stack.role == role]
        if not found:
            known = ", ".join(stack.role for stack in facts.stacks)
            raise InputError(f"there is no stack {role!r}", expected=known)
        return found
    found = [s for s in facts.stacks if s.role.rstrip("0123456789") in method.roles]
    if not found:
        raise UnsupportedError(
            f"{method.name} has no stack to be placed in: it reads {reads(method)}",
            expected=" or ".join(sorted(method.roles)),
            hint=instead(facts.consumer.role),
        )
    if _in_both(method, options) and facts.consumer in found:
        return [facts.consumer]
    return found


def _limit(budget: float) -> Fraction:
    """Return the decimal number the user wrote: 0.3 is 3/10, not the nearest binary fraction."""
    if not 0 < budget <= 1:
        raise InputError(f"budget = {budget!r}", expected="a number above 0, at most 1")
    return Fraction(repr(float(budget)))
