"""``tokopt eval``: how many labelled samples an artifact answers right, beside the original.

How the data is laid out is said in ``eval_data.py``; ``tokopt eval --help`` repeats it.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokopt.cli.eval_accuracy import Accuracy
    from tokopt.cli.evaluator import Evaluation

DATA = """\
data: a safetensors file, or a folder of them.  Each holds
  <input>   every input of the program by its name, the samples along dim 0 in all of them
  answer    int64 [n]: the expected argmax of the last row of the program's first output
  kind      int64 [n], optional: an index into the names in the file's metadata,
            {"kinds": "digit,where,count"}
Samples whose inputs differ in size (prompts of other lengths) go into separate files.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser(
        "eval",
        help="accuracy of an artifact on labelled samples",
        epilog=DATA,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifact", help="a folder that `tokopt compile` wrote")
    parser.add_argument("--data", required=True, metavar="PATH", help="a file or folder, see below")
    parser.add_argument("--against", metavar="MODEL", help="the archive it was made from")
    parser.add_argument("--budget", type=float, help="which of the artifact's budgets (the first)")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N samples")
    parser.add_argument("--batch", type=int, default=32, metavar="N", help="samples at once (32)")
    parser.add_argument("--target", help="another target that reads the same files")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the accuracies on stdout and return the exit code."""
    from tokopt.cli.evaluator import evaluate

    evaluation = evaluate(
        args.artifact,
        args.data,
        against=args.against,
        budget=args.budget,
        limit=args.limit,
        batch=args.batch,
        target=args.target,
        quiet=False,
    )
    if args.json:
        print(json.dumps({"artifact": args.artifact, "data": args.data, **as_data(evaluation)}))
    else:
        show_table(evaluation)
    return 0


def as_data(evaluation: Evaluation) -> dict[str, Any]:
    """Return accuracies for machines: in total, and per kind where there are several."""
    from tokopt.cli.eval_accuracy import kinds_of

    artifact, original = evaluation.artifact, evaluation.original

    def row(kind: str | None) -> dict[str, Any]:
        return {
            "samples": artifact.accuracy(kind).total,
            "artifact": numbers(artifact.accuracy(kind)),
            "original": None if original is None else numbers(original.accuracy(kind)),
            "same_answer": None if original is None else artifact.agreement(original, kind).right,
        }

    kinds = kinds_of([artifact])
    rows = {kind: row(kind) for kind in kinds} if len(kinds) > 1 else {}
    return {"schema_version": 1, "target": evaluation.target, "all": row(None), "kinds": rows}


def numbers(accuracy: Accuracy) -> dict[str, Any]:
    """Return an accuracy and its 95 % interval for machines."""
    low, high = accuracy.interval
    return {"right": accuracy.right, "accuracy": accuracy.share, "low": low, "high": high}


def show_table(evaluation: Evaluation) -> None:
    """Print the accuracies as a table for a person."""
    from rich.table import Table

    from tokopt.cli.console import show

    data = as_data(evaluation)
    compared = evaluation.original is not None
    table = Table("samples of", "n", "artifact", *(("original", "same answer") if compared else ()))
    for kind, row in {**data["kinds"], "all": data["all"]}.items():
        cells = [text_of(row["artifact"])]
        if compared:
            cells += [text_of(row["original"]), f"{row['same_answer'] / row['samples']:.1%}"]
        style = "bold" if row is data["all"] else None
        table.add_row(kind, str(row["samples"]), *cells, style=style)
    show(table, f"answered right (95 % interval), run by {evaluation.target}")


def text_of(accuracy: dict[str, Any]) -> str:
    """Return ``98.8 % (97.4 to 99.4)``."""
    low, high = 100 * accuracy["low"], 100 * accuracy["high"]
    return f"{100 * accuracy['accuracy']:.1f} % ({low:.1f} to {high:.1f})"
