"""``tokopt bench``: how long an artifact takes, beside the original and beside the token floor."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokopt.ir.errors import InputError

if TYPE_CHECKING:
    from tokopt.cli.bencher import Benchmark
    from tokopt.targets.timing import Spread

FLOOR = """\
token floor: the original program fed only the rows that stay, cut to the first rows at the same
places, with nothing that scores, ranks or gathers.  compiled / floor is what selection costs; no
compiler could make it less than 1.  Times are of whole prompts (prefill); of a model with decode
also of one step of it, and of a prompt with an answer.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser(
        "bench",
        help="time an artifact beside the original and the token floor",
        epilog=FLOOR,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("artifact", help="a folder that `tokopt compile` wrote")
    parser.add_argument("--against", metavar="MODEL", required=True, help="what it was made from")
    parser.add_argument("--inputs", metavar="FILE", help="safetensors to run on (the archive's)")
    parser.add_argument("--budget", type=float, help="which of the artifact's budgets (the first)")
    parser.add_argument("--batch", type=_numbers, default=(), metavar="N[,N]", help="items at once")
    parser.add_argument("--rounds", type=int, default=30, metavar="N", help="runs of each (30)")
    parser.add_argument(
        "--tokens", type=int, default=16, metavar="N", help="tokens of an answer (16; 0: none)"
    )
    parser.add_argument("--no-stages", action="store_true", help="do not time each stage alone")
    parser.add_argument("--no-memory", action="store_true", help="do not measure peak memory")
    parser.add_argument("--target", help="another target that reads the same files")
    parser.add_argument("--output", metavar="FILE", help="also write the JSON object here")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure, print on stdout, and return the exit code."""
    from tokopt.cli.bencher import bench
    from tokopt.cli.console import say

    if args.output and not Path(args.output).resolve().parent.is_dir():
        raise InputError("there is no such folder to write to", where=args.output)
    found = bench(
        args.artifact,
        args.against,
        inputs=args.inputs,
        budget=args.budget,
        batches=args.batch,
        rounds=args.rounds,
        tokens=args.tokens,
        stages=not args.no_stages,
        memory=not args.no_memory,
        target=args.target,
        quiet=False,
    )
    data = {"schema_version": 1, "artifact": args.artifact, **as_data(found)}
    if args.json:
        print(json.dumps(data))
    else:
        show_tables(found)
    if not found.whole:
        say("interrupted: only whole rounds are counted")
    if args.output:
        _write(Path(args.output), json.dumps(data, indent=1) + "\n")
    return 0


def as_data(found: Benchmark) -> dict[str, Any]:
    """Return what was measured for machines: seconds, ratios and bytes."""
    from tokopt.targets.manifest import versions

    def plain(spreads: Any) -> dict[str, Any]:
        return {name: vars(one) for name, one in spreads.items()}

    return {
        "target": found.target,
        "threads": found.threads,
        "versions": versions(),
        "stages": [f"{s.method} at {s.site} keeps {s.keep}" for s in found.plan.stages],
        "timed": [
            {
                "what": one.what,
                "batch": one.batch,
                "seconds": plain(one.seconds),
                "original/compiled": vars(one.speedup),
                "original/floor": None if one.possible is None else vars(one.possible),
                "compiled/floor": None if one.overhead is None else vars(one.overhead),
                "stage_seconds": plain(one.stages),
            }
            for one in found.timed
        ],
        "memory_bytes": {name: vars(one) for name, one in found.memory.items()},
        "whole": found.whole,
    }


def show_tables(found: Benchmark) -> None:
    """Print tables for a person: milliseconds (quartiles), ratios, stages, memory."""
    from rich.table import Table

    from tokopt.cli.console import show

    heads = ("what", "batch", "program", "median ms", "quartiles", "original / it", "it / floor")
    table = Table(*heads)
    for one in found.timed:
        faster = {"compiled": one.speedup, "floor": one.possible}
        slower = {"compiled": one.overhead}
        for name, seconds in one.seconds.items():
            table.add_row(
                one.what,
                str(one.batch),
                name,
                f"{seconds.median * 1e3:.2f}",
                f"{seconds.low * 1e3:.2f} to {seconds.high * 1e3:.2f}",
                _ratio(faster.get(name)),
                _ratio(slower.get(name)),
            )
    parts = [table]
    if any(one.stages for one in found.timed):
        parts.append(stages := Table("batch", "stage alone", "median ms", "of compiled"))
        for one in found.timed:
            for name, seconds in one.stages.items():
                share = seconds.median / one.seconds["compiled"].median
                stages.add_row(str(one.batch), name, f"{seconds.median * 1e3:.2f}", f"{share:.1%}")
    if found.memory:
        parts.append(memory := Table("program", "peak MiB", "of it before opening"))
        for name, needed in found.memory.items():
            memory.add_row(name, *(f"{n / 2**20:.0f}" for n in (needed.peak, needed.before)))
    plural = "s" if found.threads != 1 else ""
    show(*parts, f"{found.target}, {found.threads} thread{plural}; ratios are medians over rounds")


def _ratio(found: Spread | None) -> str:
    return "" if found is None else f"{found.median:.3f}"


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no list of batch sizes such as 1,4"
        ) from None


def _write(path: Path, text: str) -> None:
    """Write beside, then rename: nobody finds half a file."""
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise InputError(f"the result cannot be written: {error}", where=str(path)) from error
