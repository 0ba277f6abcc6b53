"""``tokopt inspect``: what a program is: token axes, layers, sites and why a site is not legal.

Weights are not read: a 7B-size archive is inspected in the memory of its graph.  Of an artifact
folder its ``program.pt2`` is shown, with the links that the manifest has.  With ``--metrics`` the
program is run once, and what its attention does is shown too.  With ``--target`` an artifact's
lowered model is shown instead: where it runs, what is one operator there, and what is not.
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
    parser.add_argument(
        "model", metavar="MODEL.pt2", help="saved by torch.export.save; or an artifact folder"
    )
    parser.add_argument(
        "--metrics",
        action="store_true",
        help="run the program once: how attention is shared between text and image, layer by "
        "layer, and each layer's operations and bytes on these inputs",
    )
    parser.add_argument(
        "--inputs", metavar="FILE", help="safetensors to run on (default: the example inputs)"
    )
    parser.add_argument(
        "--target",
        action="store_true",
        help="of an artifact folder: which attention, norms, rotary embeddings, skip connections "
        "and scorings the runtime runs as one operator each, and which not, and why",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the facts of a program and return 0."""
    from tokopt.cli.describe import describe_program
    from tokopt.cli.inputs import inputs_for
    from tokopt.cli.inspect_metrics import describe_metrics, metrics_tables
    from tokopt.cli.inspect_tables import tables
    from tokopt.cli.inspect_work import describe_work, work_tables
    from tokopt.cli.several import describe_links, located, whole
    from tokopt.ir.errors import InputError
    from tokopt.ir.facts import analyse
    from tokopt.ir.load import load
    from tokopt.passes.layer_work import work_by_layer
    from tokopt.passes.manager import PassManager
    from tokopt.passes.metrics import measure
    from tokopt.passes.normalize import Normalize
    from tokopt.passes.observe import observe

    if args.inputs is not None and not args.metrics:
        raise InputError("--inputs is read by --metrics only", expected="--metrics beside it")
    if args.target:
        return _show_lowered(args)
    with stage(f"loading {args.model}"):
        file, links = located(args.model)
        program = load(file, check=args.metrics)
    with stage("normalizing"):
        program = PassManager([Normalize()]).run(program)
    with stage("analysing"):
        known = describe_links(program.graphs, links)
        exported, joined = whole(program, known)
        facts = analyse(exported)
        described = describe_program(program, facts, joined, known)
    if args.metrics:
        with stage("running"):
            given = inputs_for(exported, args.inputs)
            described["metrics"] = describe_metrics(measure(observe(facts, given)))
            described["work"] = describe_work(work_by_layer(facts, given))
    if args.json:
        print(json.dumps(described))
    else:
        show(*tables(described))
        show(*metrics_tables(described["metrics"]) if args.metrics else ())
        show(*work_tables(described["work"]) if args.metrics else ())
    return 0


def _show_lowered(args: argparse.Namespace) -> int:
    from tokopt.cli.inspect_lowered import describe_lowered, lowered_tables
    from tokopt.ir.errors import InputError

    if args.metrics:
        raise InputError("--target and --metrics look at different things", expected="one of them")
    with stage(f"loading {args.model}"):
        described = describe_lowered(args.model)
    if args.json:
        print(json.dumps(described))
    else:
        show(*lowered_tables(described))
    return 0
