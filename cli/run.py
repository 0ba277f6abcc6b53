"""``tokopt run``: run an artifact on inputs or a prompt and show what comes out."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokopt.cli.answer_options import add_options, asks_for_tokens, check_options

if TYPE_CHECKING:
    from torch import Tensor


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser("run", help="run an artifact on inputs or a prompt")
    parser.add_argument("artifact", help="a folder that `tokopt compile` wrote")
    parser.add_argument("--inputs", metavar="FILE", help="safetensors, one tensor per input")
    parser.add_argument("-o", "--output", metavar="FILE", help="write the outputs here")
    parser.add_argument(
        "--trace", action="store_true", help="also the rows each stage kept, and their scores"
    )
    parser.add_argument("--budget", type=float, help="which of the artifact's budgets (the first)")
    parser.add_argument(
        "--program", help="which of the programs of a model that came as several (all of them)"
    )
    parser.add_argument("--target", help="another target that reads the same files")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run, print a table of the outputs or what was generated, and return the exit code.

    Raises ``InputError`` naming the inputs that are needed where no file is given,
    and ``GateError`` for an artifact that failed verification.
    """
    from tokopt.cli.inputs import check_merges, fitting_inputs, inputs_needed, read_inputs
    from tokopt.cli.write_tensors import write_tensors
    from tokopt.targets.chained import signature_for
    from tokopt.targets.runtime import load

    generates = asks_for_tokens(args)
    if generates:
        check_options(args)
    artifact = load(args.artifact, target=args.target)
    if args.budget is not None:
        artifact = artifact.at(args.budget)
    if args.program is not None:
        artifact = artifact.program(args.program)
    if generates:
        from tokopt.cli.answer import answer

        answer(args, artifact)
        return 0
    manifest = artifact.manifest
    if args.inputs is None:
        raise inputs_needed(signature_for(manifest, ()), args.artifact)
    names = read_inputs(args.inputs) if manifest.programs or manifest.memory else ()
    given = fitting_inputs(args.inputs, signature_for(manifest, names))
    check_merges(given, manifest.placeholders, args.inputs)
    outputs = artifact(given, trace=args.trace)
    if args.output is not None:
        write_tensors(outputs, Path(args.output))
    rows = [describe(name, value) for name, value in outputs.items()]
    if args.json:
        target = args.target or artifact.manifest.target
        data = {"artifact": str(args.artifact), "target": target, "outputs": rows}
        print(json.dumps({"schema_version": 1, **data, "written": args.output}))
    else:
        show_table(rows, args.output)
    return 0


def describe(name: str, value: Tensor) -> dict[str, Any]:
    """Return one output for machines; a number that is not finite (or of nothing) is None."""
    import torch

    numbers = value.double()
    finite = bool(torch.isfinite(numbers).all()) and value.numel() > 0
    low, mean, high = (numbers.min(), numbers.mean(), numbers.max()) if finite else (None,) * 3
    return {
        "name": name,
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
        "min": None if low is None else float(low),
        "mean": None if mean is None else float(mean),
        "max": None if high is None else float(high),
    }


def show_table(rows: list[dict[str, Any]], written: str | None) -> None:
    """Print the outputs as a table for a person."""
    from rich.table import Table

    from tokopt.cli.console import show

    table = Table("output", "dtype", "shape", "min", "mean", "max")
    for row in rows:
        numbers = (row["min"], row["mean"], row["max"])
        texts = ("not finite" if n is None else f"{n:.5g}" for n in numbers)
        table.add_row(row["name"], row["dtype"], str(row["shape"]), *texts)
    show(table)
    if written is not None:
        show(f"written: {written}")
