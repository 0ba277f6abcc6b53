"""``tokopt methods``: the methods there are, what each needs and where it can be placed.

Those that drop rows are stages of a plan; those that only change attention its [[attention]].
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.rewrites.registry import REWRITES
from tokopt.passes.rewrites.rewrite import Rewrite

COLUMNS = ("name", "paper", "in a plan", "placed in", "needs")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser("methods", help="list the methods")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the methods on stdout."""
    if arguments.json:
        print(json.dumps([describe(method) for method in _every()], indent=2))
        return 0
    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    table.add_column("what it is")
    for method in _every():
        placed, needs = ", ".join(sorted(method.roles)), ", ".join(sorted(_needs(method)))
        table.add_row(method.name, method.paper, _kind(method), placed, needs, _about(method))
    Console().print(table)
    return 0


def describe(method: Method | Rewrite) -> dict[str, Any]:
    """Return what the table says of a method, as plain data."""
    return {
        "name": method.name,
        "paper": method.paper,
        "roles": sorted(method.roles),
        "kind": _kind(method),
        "needs": sorted(_needs(method)),
        "calibrated": sorted(method.calibrated) if isinstance(method, Method) else [],
        "options": dict(method.options),
        "notes": method.notes,
    }


def _every() -> list[Method | Rewrite]:
    return [*METHODS.values(), *REWRITES.values()]


def _kind(method: Method | Rewrite) -> str:
    return "stage" if isinstance(method, Method) else "attention"


def _needs(method: Method | Rewrite) -> frozenset[str]:
    if isinstance(method, Method):
        return method.needs
    return frozenset({"tower"} if method.tower else ())


def _about(method: Method | Rewrite) -> str:
    text = method.notes
    if method.options:
        text += f" (options: {', '.join(f'{k} = {v}' for k, v in method.options.items())})"
    if isinstance(method, Method) and method.calibrated:
        text += "; calibrated by --inputs"
    return text
