"""``tokopt methods``: the methods there are, what each needs and where it can be placed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS

COLUMNS = ("name", "paper", "placed in", "needs")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser("methods", help="list the selection methods")
    parser.add_argument("--json", action="store_true", help="print one JSON list instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the methods on stdout."""
    if arguments.json:
        print(json.dumps([describe(method) for method in METHODS.values()], indent=2))
        return 0
    table = Table(box=None)
    for column in COLUMNS:
        table.add_column(column, no_wrap=True)
    table.add_column("what it is")
    for method in METHODS.values():
        placed, needs = ", ".join(sorted(method.roles)), ", ".join(sorted(method.needs))
        table.add_row(method.name, method.paper, placed, needs, _about(method))
    Console().print(table)
    return 0


def describe(method: Method) -> dict[str, Any]:
    """Return what the table says of a method, as plain data."""
    return {
        "name": method.name,
        "paper": method.paper,
        "roles": sorted(method.roles),
        "needs": sorted(method.needs),
        "calibrated": sorted(method.calibrated),
        "options": dict(method.options),
        "notes": method.notes,
    }


def _about(method: Method) -> str:
    text = method.notes
    if method.options:
        text += f" (options: {', '.join(f'{k} = {v}' for k, v in method.options.items())})"
    if method.calibrated:
        text += "; calibrated by --inputs"
    return text
