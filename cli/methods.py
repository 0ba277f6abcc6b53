"""``tokopt methods``: the methods there are, what each needs and where it can be placed."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS

COLUMNS = ("name", "paper", "placed in", "needs", "calibrated in", "options", "what it keeps")


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
    table = Table(*COLUMNS, box=None)
    for method in METHODS.values():
        table.add_row(*(_text(value) for value in describe(method).values()))
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


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={default}" for key, default in value.items())
    return ", ".join(value) if isinstance(value, list) else str(value)
