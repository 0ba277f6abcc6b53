"""Plan difference: what tells two plans apart, entry by entry.

Entries are matched by their site, of which a plan has at most one each; those left over by their
method, in order, as moved; what then has no partner was added or removed.  Equal plans, and only
those, differ in nothing: every field of a plan is compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokopt.ir.plan import Attending, Plan, SparseDecode, Stage

Entry = Stage | Attending


@dataclass(frozen=True)
class Change:
    """One field with its values in both plans; None where one of them has no such field."""

    field: str
    before: Any
    after: Any


@dataclass(frozen=True)
class EntryDifference:
    """A ``stage`` or ``attention`` entry; None: it is in the other plan alone."""

    kind: str
    before: Entry | None
    after: Entry | None
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class PlanDifference:
    """``fields``: of the plans themselves; ``entries``: those that differ; ``order``: only that.

    ``order``: the entries of both plans that are matched stand in another order.
    """

    fields: tuple[Change, ...]
    entries: tuple[EntryDifference, ...]
    order: bool = False

    @property
    def same(self) -> bool:
        """Whether the plans are equal."""
        return not (self.fields or self.entries or self.order)


def plan_difference(before: Plan, after: Plan) -> PlanDifference:
    """Return what tells two plans apart."""
    heads = [_head(plan) for plan in (before, after)]
    stages, stages_moved = _compare("stage", before.stages, after.stages)
    attention, attention_moved = _compare("attention", before.attention, after.attention)
    moved = stages_moved or attention_moved
    return PlanDifference(_changes(*heads), (*stages, *attention), moved)


def _head(plan: Plan) -> dict[str, Any]:
    fields = {name: getattr(plan, name) for name in ("budget", "seed", "outputs")}
    fields |= {f"cache.{one.layer}": f"{one.key}/{one.value}" for one in plan.cache}
    decode = {} if plan.decode is None else _fields(plan.decode)
    return {**fields, **{f"decode.{name}": value for name, value in decode.items()}}


def _compare(
    kind: str, before: Sequence[Entry], after: Sequence[Entry]
) -> tuple[list[EntryDifference], bool]:
    """Return the entries that differ, in the plans' order, and whether that order changed."""
    partner = _matched(before, after, {}, lambda entry: entry.site)
    partner = _matched(before, after, partner, lambda entry: entry.method)
    found: list[EntryDifference] = []
    for place, entry in enumerate(before):
        other = after[partner[place]] if place in partner else None
        changes = () if other is None else _changes(_fields(entry), _fields(other))
        if other is None or changes:
            found.append(EntryDifference(kind, entry, other, changes))
    taken = set(partner.values())
    new = [entry for place, entry in enumerate(after) if place not in taken]
    found += [EntryDifference(kind, None, entry) for entry in new]
    order = [partner[place] for place in sorted(partner)]
    return found, order != sorted(order)


def _matched(
    before: Sequence[Entry],
    after: Sequence[Entry],
    known: Mapping[int, int],
    key: Callable[[Entry], str],
) -> dict[int, int]:
    """Return ``known`` pairs of places and those of the rest that have the same key."""
    found, taken = dict(known), set(known.values())
    for place, entry in enumerate(before):
        same = (i for i, e in enumerate(after) if i not in taken and key(e) == key(entry))
        other = next(same, None)
        if place not in found and other is not None:
            found[place] = other
            taken.add(other)
    return found


def _fields(entry: Entry | SparseDecode) -> dict[str, Any]:
    plain = {k: v for k, v in vars(entry).items() if k != "options"}
    return {**plain, **{f"options.{k}": v for k, v in sorted(entry.options.items())}}


def _changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[Change, ...]:
    names = dict.fromkeys([*before, *after])
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    return tuple(Change(*pair) for pair in pairs if pair[1] != pair[2])
