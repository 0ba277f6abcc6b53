"""``tokopt methods``: the methods there are, where each works, what it needs and what it costs."""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from tokopt.passes.methods.about import needs_in_words, scope
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS

COLUMNS = ("name", "scope", "cost", "paper")
FOOT = """
scope: where its published stages lie. cost: how its own work grows with N visual rows, of which K
stay. licence: that of the authors' code; what is here is written from the papers and Apache-2.0."""


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
    facts, texts = Table(box=None), Table(box=None)
    for column in COLUMNS:
        facts.add_column(column, no_wrap=True)
    facts.add_column("licence")
    facts.add_column("needs")
    texts.add_column("name", no_wrap=True)
    texts.add_column("what it is")
    for method in METHODS.values():
        where, needs = ", ".join(scope(method)), ", ".join(needs_in_words(method))
        facts.add_row(method.name, where, method.cost, method.paper, method.licence, needs)
        texts.add_row(method.name, _about(method))
    console = Console()
    console.print(texts, "", facts)
    console.print(FOOT)
    return 0


def describe(method: Method) -> dict[str, Any]:
    """Return what the table says of a method, as plain data."""
    return {
        "name": method.name,
        "paper": method.paper,
        "licence": method.licence,
        "scope": list(scope(method)),
        "cost": method.cost,
        "roles": sorted(method.roles),
        "needs": sorted(method.needs),
        "needs_in_words": list(needs_in_words(method)),
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
