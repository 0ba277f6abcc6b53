"""``tokopt opt``: run passes on a program, and look at what each does."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokopt.cli.console import rendered, say, stage
from tokopt.cli.opt_report import SCHEMA, as_json, outcome, table
from tokopt.ir.errors import InputError

if TYPE_CHECKING:
    from tokopt.ir.program import Program
    from tokopt.passes.instrument import Instrument, Record


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register ``opt`` and its options."""
    parser = subparsers.add_parser(
        "opt",
        help="run passes on a program",
        description="Run a pipeline of passes on a program. Programs, remarks and timings are "
        "shown on stderr; what is written to stdout is the program (-o -), one JSON object "
        "(--json), or one line per pass.",
        epilog="example: tokopt opt model.pt2 -p 'normalize' -o -",
    )
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL.pt2", help="a program saved by torch.export.save")
    add("-p", "--passes", default="", metavar="PIPELINE", help="pass{option=value …},pass,…")
    add("-o", "--output", metavar="OUT.pt2", help="where to save the result; - prints it")
    add("--anonymous", action="store_true", help="print no names of parameters and inputs")
    add("--print-ir-before-all", action="store_true", help="print the program before each pass")
    add("--print-ir-after-all", action="store_true", help="print the program after each pass")
    add(
        "--verify-each",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="check the graph's structure after each pass (default: yes)",
    )
    add("--time-passes", action="store_true", help="print the seconds each pass took")
    add("--statistics", action="store_true", help="print what each pass counted")
    add("--print-pipeline", action="store_true", help="print the pipeline as it was understood")
    add("--list-passes", action="store_true", help="print every pass with its options, and exit")
    add(
        "--crash-reproducer",
        type=Path,
        metavar="DIR",
        help="where a pass that fails leaves its input and pipeline",
    )
    add("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the pipeline and return 0."""
    from tokopt.passes.pipeline import describe_pass, parse_pipeline, print_pipeline
    from tokopt.passes.registry import registered_passes

    if args.list_passes:
        lines = [describe_pass(kind) for kind in registered_passes().values()]
        print(
            json.dumps({"schema_version": SCHEMA, "passes": lines})
            if args.json
            else "\n".join(lines)
        )
        return 0
    passes = parse_pipeline(args.passes)
    text = print_pipeline(passes)
    if args.print_pipeline:
        say(text)
    if args.model is None:
        if args.print_pipeline:
            return 0
        raise InputError("no program was given", where="command line", expected="MODEL.pt2")
    _check_output(args.output)
    program, records = _run_passes(args, passes)
    if args.time_passes or args.statistics:
        say(rendered(table(records, args.time_passes, args.statistics)).rstrip())
    _write(program, records, text, args)
    return 0


def _run_passes(args: argparse.Namespace, passes: Sequence[Any]) -> tuple[Program, list[Record]]:
    from tokopt.ir.load import load
    from tokopt.passes.instrument import Print, Time, Verify, default_instruments
    from tokopt.passes.manager import PassManager

    clock = Time()
    watching: list[Instrument] = [clock]
    if args.print_ir_before_all or args.print_ir_after_all:
        before, after = args.print_ir_before_all, args.print_ir_after_all
        watching.append(Print(sys.stderr.write, before, after, args.anonymous))
    chosen = default_instruments()
    watching += [i for i in chosen if args.verify_each or not isinstance(i, Verify)]
    with stage(f"loading {args.model}"):
        program = load(args.model)
    program = PassManager(passes, watching, args.crash_reproducer).run(program)
    for record in clock.records:
        for remark in record.remarks:
            say(f"remark: {record.name}: {remark}")
    return program, clock.records


def _check_output(output: str | None) -> None:
    """Refuse an output that could not be written, before anything is computed."""
    if output is None or output == "-":
        return
    if Path(output).suffix != ".pt2":
        raise InputError("this is no name for a program", where=output, expected="NAME.pt2 or -")
    if not Path(output).parent.is_dir():
        raise InputError("there is no such folder", where=str(Path(output).parent))


def _write(program: Program, records: list[Record], text: str, args: argparse.Namespace) -> None:
    from tokopt.ir.save import save
    from tokopt.ir.text import print_program

    if args.output not in (None, "-"):
        save(program, args.output)
    printed = print_program(program, anonymous=args.anonymous) if args.output == "-" else None
    if args.json:
        facts = {"source": program.source, "output": args.output, "program": printed}
        print(as_json(records, pipeline=text, **facts))
    elif printed is not None:
        sys.stdout.write(printed)
    else:
        for record in records:
            print(f"{record.text}: {outcome(record)}")
