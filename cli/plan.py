"""``tokopt plan``: what tells two plans apart.

Plans are named by their files or by the artifact folders that hold them; of an artifact for several
budgets it is the first, the others are ``folder/plan-0.1.toml``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokopt.ir.plan import Plan
    from tokopt.ir.plan_difference import Change, EntryDifference, PlanDifference


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser(
        "plan",
        help="what tells two plans apart",
        description="Print what differs: + is in the second plan alone, - in the first alone, ~ in "
        "both with other values. The exit code is 0 whether they differ or not; --json has `same`.",
    )
    parser.add_argument("action", choices=["diff"], help="the one thing it does")
    parser.add_argument("before", metavar="A", help="a plan file, or an artifact folder")
    parser.add_argument("after", metavar="B", help="another")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the difference on stdout and return 0."""
    from tokopt.ir.plan_difference import plan_difference

    found = plan_difference(read_plan(args.before), read_plan(args.after))
    if args.json:
        print(json.dumps(as_data(args.before, args.after, found)))
    else:
        print("\n".join(lines(args.before, args.after, found)))
    return 0


def read_plan(place: str | Path) -> Plan:
    """Return the plan of a file or of an artifact folder; ``InputError`` says what is wrong."""
    from tokopt.ir.plan import Plan
    from tokopt.passes.select import read_plan_text
    from tokopt.targets.artifact import PLAN

    file = Path(place, PLAN) if Path(place).is_dir() else Path(place)
    return Plan.from_toml(read_plan_text(str(file)), str(file))


def as_data(before: str, after: str, found: PlanDifference) -> dict[str, Any]:
    """Return the difference for machines."""
    data = {"schema_version": 1, "before": before, "after": after, "same": found.same}
    return {**data, **asdict(found)}


def lines(before: str, after: str, found: PlanDifference) -> Iterator[str]:
    """Yield the difference for a person."""
    if found.same:
        yield "the plans are the same"
        return
    yield from (f"--- {before}", f"+++ {after}")
    yield from (f"~ {_told(change)}" for change in found.fields)
    for entry in found.entries:
        yield _entry(entry)
    if found.order:
        yield "~ the entries stand in another order"


def _entry(found: EntryDifference) -> str:
    if found.before is None or found.after is None:
        entry, sign = found.after or found.before, "+" if found.before is None else "-"
        assert entry is not None
        fields = {k: v for k, v in vars(entry).items() if k not in ("site", "method", "options")}
        told = [f"{k} = {v}" for k, v in {**fields, **entry.options}.items() if v is not None]
        return f"{sign} {found.kind} {entry.method} at {entry.site} {', '.join(told)}".rstrip()
    changes = ", ".join(map(_told, found.changes))
    return f"~ {found.kind} {found.before.method} at {found.before.site}: {changes}"


def _told(change: Change) -> str:
    before, after = ("none" if v is None else v for v in (change.before, change.after))
    return f"{change.field} {before} -> {after}"
