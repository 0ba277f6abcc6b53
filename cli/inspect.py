"""``tokopt inspect``: what a program is: token axes, layers, sites and why a site is not legal.

Weights are not read: a 7B-size archive is inspected in the memory of its graph.
"""

from __future__ import annotations

import argparse
import json

from tokopt.cli.console import show, stage


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``inspect`` and its options."""
    parser = subparsers.add_parser(
        "inspect",
        help="what a program is",
        description="Show inputs and outputs, token axes, attention layers, the places where "
        "tokens may be dropped (or what keeps them from it), and the layers that budgets count.",
    )
    parser.add_argument("model", metavar="MODEL.pt2", help="a program saved by torch.export.save")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts of a program and return 0."""
    from tokopt.cli.describe import describe_program
    from tokopt.cli.inspect_tables import tables
    from tokopt.ir.facts import analyse
    from tokopt.ir.load import load
    from tokopt.passes.manager import PassManager
    from tokopt.passes.normalize import Normalize

    with stage(f"loading {args.model}"):
        program = load(args.model, check=False)
    with stage("normalizing"):
        program = PassManager([Normalize()]).run(program)
    with stage("analysing"):
        described = describe_program(program, analyse(program.main))
    if args.json:
        print(json.dumps(described))
    else:
        show(*tables(described))
    return 0
