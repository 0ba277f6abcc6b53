"""``tokopt methods``: the methods there are, where each works, what it needs and what it costs.

Those that drop rows are stages of a plan; those that drop none, but change attention or reuse what
layers made of earlier calls, its [[attention]].
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from rich.console import Console
from rich.table import Table

from tokopt.passes.methods.about import needs_in_words, scope
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.rewrites.registry import REWRITES
from tokopt.passes.rewrites.reuse import Reuse
from tokopt.passes.rewrites.rewrite import Rewrite

Listed = Method | Rewrite | Reuse
COLUMNS = ("name", "scope", "cost", "paper")
FOOT = """
scope: where its published stages lie, or where attention is changed and no row dropped. cost: how
its own work grows with N visual rows, of which K stay. licence: that of the authors' code; what is
here is written from the papers and Apache-2.0."""


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
    facts, texts = Table(box=None), Table(box=None)
    for column in COLUMNS:
        facts.add_column(column, no_wrap=True)
    facts.add_column("licence")
    facts.add_column("needs")
    texts.add_column("name", no_wrap=True)
    texts.add_column("what it is")
    for row in map(describe, _every()):
        where, needs = ", ".join(row["scope"]), ", ".join(row["needs_in_words"])
        facts.add_row(row["name"], where, row["cost"], row["paper"], row["licence"], needs)
    for method in _every():
        texts.add_row(method.name, _about(method))
    console = Console()
    console.print(texts, "", facts)
    console.print(FOOT)
    return 0


def describe(method: Listed) -> dict[str, Any]:
    """Return what the table says of a method, as plain data."""
    return {
        "name": method.name,
        "paper": method.paper,
        "licence": method.licence,
        "scope": list(_scope(method)),
        "cost": method.cost,
        "roles": sorted(method.roles),
        "kind": _kind(method),
        "needs": sorted(method.needs),
        "needs_in_words": list(needs_in_words(method)),
        "calibrated": sorted(method.calibrated) if isinstance(method, Method) else [],
        "options": dict(method.options),
        "notes": method.notes,
        "square": method.square if isinstance(method, Method) else "",
    }


def _every() -> list[Listed]:
    return [*METHODS.values(), *REWRITES.values()]


def _kind(method: Listed) -> str:
    if isinstance(method, Reuse):
        return "reuse"
    return "stage" if isinstance(method, Method) else "attention"


def _scope(method: Listed) -> tuple[str, ...]:
    if isinstance(method, Reuse):
        return ("vision layers",)
    return scope(method) if isinstance(method, Method) else ("LLM attention",)


def _about(method: Listed) -> str:
    text = method.notes
    if method.options:
        text += f" (options: {', '.join(f'{k} = {v}' for k, v in method.options.items())})"
    if not isinstance(method, Method):
        text += f"; published from layer {method.first} on"
    elif method.calibrated:
        text += "; calibrated by --inputs"
    return text
