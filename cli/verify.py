"""``tokopt verify``: repeat the gates of a compile on an artifact as it lies there now."""

from __future__ import annotations

import argparse
import json
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokopt.passes.validate import Verdict
    from tokopt.targets.manifest import GateResult


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser("verify", help="repeat the gates on an artifact")
    parser.add_argument("artifact", help="a folder that `tokopt compile` wrote")
    parser.add_argument("--against", metavar="MODEL", help="the archive it was made from")
    parser.add_argument("--inputs", metavar="FILE", help="safetensors the gates run on")
    parser.add_argument("--target", help="another target that reads the same files")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Repeat the gates, print them on stdout; exit code 1 where one fails."""
    from tokopt.cli.verifier import verify

    gates = verify(args.artifact, against=args.against, inputs=args.inputs, target=args.target)
    passed = all(gate.passed for gate in gates)
    if args.json:
        print(json.dumps(as_data(args.artifact, gates)))
    else:
        show_table(gates)
    return 0 if passed else 1


def as_data(artifact: str, gates: list[Verdict]) -> dict[str, Any]:
    """Return the verdicts for machines."""
    passed = all(gate.passed for gate in gates)
    return {
        "schema_version": 1,
        "artifact": artifact,
        "passed": passed,
        "gates": [plain(gate) for gate in gates],
    }


def plain(gate: Verdict | GateResult) -> dict[str, Any]:
    """Return a verdict as JSON can hold it: a difference that is no number is None."""
    difference = gate.max_difference
    finite = difference is not None and math.isfinite(difference)
    data = {**vars(gate), "max_difference": difference if finite else None}
    return {"note": data.pop("message", ""), **data}


def show_table(gates: list[Verdict]) -> None:
    """Print the verdicts as a table for a person, what was wrong below it."""
    from rich.table import Table

    from tokopt.cli.console import say, show

    table = Table("gate", "result", "difference", "allowed", "compared")
    for gate in gates:
        numbers = (gate.max_difference, gate.tolerance)
        texts = ("" if number is None else f"{number:.1e}" for number in numbers)
        table.add_row(gate.gate, "ok" if gate.passed else "FAILED", *texts, gate.compared)
    show(table)
    for gate in gates:
        if not gate.passed:
            say(f"gate {gate.gate} failed: {gate.message or gate.compared}")
