"""``tokopt explain``: why an artifact's plan is as it is, what each stage costs and what it loses.

Why: where a search chose the plan, the best that was judged at every site, and the methods beside
it.  Costs: the operations and bytes of choosing, against what is saved.  Losses and the flow
through the layers are measured on the archive it was made from (``--against``).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import RenderableType

SHOWN = 8
"""Sites and methods that are shown; --json has all."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser(
        "explain", help="why a plan is as it is, what it costs and loses"
    )
    parser.add_argument("artifact", help="a folder that `tokopt compile` wrote")
    parser.add_argument(
        "--against", metavar="MODEL", help="the archive it was made from: measure losses and flow"
    )
    parser.add_argument(
        "--inputs", metavar="FILE", help="safetensors to measure on (the archive's)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the explanation on stdout and return 0."""
    from tokopt.cli.console import say, show
    from tokopt.cli.explainer import explain
    from tokopt.cli.sparse_line import sparse_line
    from tokopt.ir.errors import InputError

    if args.inputs is not None and args.against is None:
        raise InputError("--inputs is measured on the original", expected="--against MODEL too")
    found = explain(args.artifact, args.against, args.inputs)
    if args.json:
        print(json.dumps(found))
        return 0
    for budget in found["budgets"]:
        show(*parts(budget))
    if found["sparse_decode"] is not None:
        show(sparse_line(found["sparse_decode"]))
    if args.against is None:
        say("what each stage loses and the flow through the layers: --against MODEL.pt2")
    return 0


def parts(told: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield the explanation of one budget for a person."""
    from rich.text import Text

    asked = ", ".join(f"{kind} {value:g}" for kind, value in told["requested"].items())
    spent = ", ".join(f"{k} {v:.4g}" for k, v in told["spent"].items() if v is not None)
    yield Text(f"budget: asked {asked or 'nothing (a plan was given)'}; spent {spent}")
    yield _stages(told)
    if told["distance"] is not None:
        yield Text("of saved: of the operations saved; flow left, distances: of all stages so far")
    for entry in told["attention"]:
        yield Text(f"attention: {entry}")
    for entry in told["cache"]:
        yield Text(f"cache: {entry}")
    if told["distance"] is not None:
        distance = ", ".join(f"{name} {value:.4g}" for name, value in told["distance"].items())
        yield Text(f"distance of the answer on {told['samples']} samples: {distance}")
    yield from _why(told["search"])
    yield _layers(told)
    yield Text("")


def _stages(told: Mapping[str, Any]) -> RenderableType:
    measured = told["distance"] is not None
    columns = ["stage", "keeps", "operations", "of saved", "bytes"]
    columns += ["flow left", *told["distance"]] if measured else []
    table = _table(*columns)
    for stage in told["stages"]:
        until = f" until {stage['until']}" if stage["until"] is not None else ""
        cells = [f"{stage['method']} at {stage['site']}{until}", str(stage["keep"])]
        cells += [
            _count(stage["flops"]),
            _percent(stage["share_of_saved"], 2),
            _count(stage["bytes"]),
        ]
        if measured:
            cells.append(_percent(stage["flow_so_far"]))
            cells += [f"{value:.4g}" for value in stage["distance_so_far"].values()]
        table.add_row(*cells)
    return table


def _why(search: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    from rich.text import Text

    if search is None:
        yield Text("why: no plans were judged; a plan that was given, or a published placement")
        return
    origin = "the search's own" if search["origin"] == "search" else search["origin"]
    whole = "" if search["whole"] else " (interrupted)"
    yield Text(
        f"why: the least {search['measure']} distance of {search['judged']} plans judged{whole}: "
        f"{search['best']:.4g}, {origin}; {search['refused']} methods do not fit"
    )
    table = _table("the best with a stage at", "distance", "is", "its stages")
    for row in search["sites"][:SHOWN]:
        stages = ", ".join(f"{s['method']} {s['site']} {s['keep']}" for s in row["stages"])
        table.add_row(row["site"], f"{row['distance']:.4g}", row["origin"], stages)
    yield table
    table = _table("published, at this budget", "distance")
    for name, value in sorted(search["published"].items(), key=lambda each: each[1])[:SHOWN]:
        table.add_row(name, f"{value:.4g}")
    yield table


def _layers(told: Mapping[str, Any]) -> RenderableType:
    flows = told["flow"] or {}
    kept = {f"{r}:{depth}": v for r, layers in flows.items() for depth, v in enumerate(layers)}
    table = _table("layer", "visual rows", *(["flow kept"] if kept else []))
    for name in dict.fromkeys([*kept, *told["layers"]]):
        flow = [_percent(kept.get(name))] if kept else []
        table.add_row(name, _percent(told["layers"].get(name)), *flow)
    return table


def _table(*columns: str) -> Any:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    return Table(*columns, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)


def _percent(share: float | None, digits: int = 1) -> str:
    return "" if share is None else f"{share:.{digits}%}"


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
