"""``tokopt compile``: make an exported model run on fewer visual tokens, and prove it."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from tokopt.cli.sparse_line import sparse_line
from tokopt.cli.verify import plain

if TYPE_CHECKING:
    from tokopt.cli.asked import Wanted
    from tokopt.cli.compiled import Compiled
    from tokopt.ir.plan import Quota
    from tokopt.passes.limits import Limits


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to the program's parser."""
    parser = subparsers.add_parser("compile", help="compile an exported model")
    parser.add_argument("model", help="a PT2 archive (torch.export.save)")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--budget",
        type=budgets,
        metavar="B[,B...]",
        help="share of the visual tokens left, e.g. 0.1; of several (0.25,0.1) each gets a program "
        "over the same weights, and the first is the default; or limits that one program keeps "
        "together: tokens=0.2,kv=0.2,flops=0.3,latency=20ms (of a share of the original's: 0.4)",
    )
    what.add_argument("--plan", metavar="FILE", help="apply this plan exactly")
    parser.add_argument(
        "--method",
        help="the selection method, perhaps with options: downsample{grid=24x24} "
        "(default: chosen by the model)",
    )
    parser.add_argument(
        "--attention",
        metavar="NAME[{...}]",
        help="what drops no row: another attention in the decoder (var, paint{alpha=0.5}, "
        "var{p=0.6 site=decoder:4}), rows of a tower that are reused (stc_cacher{every=4}); "
        "from its published layer on where no site is given",
    )
    parser.add_argument(
        "--quota",
        type=quota,
        metavar="joint|image|N",
        help="of several images: their tokens compete (joint, default), or each keeps an equal "
        "share (image; N states how many images, where the graph does not tell)",
    )
    bits = parser.add_mutually_exclusive_group()
    bits.add_argument(
        "--kv-bits",
        metavar="N|auto",
        help="bits of a value in decode's cache: 16, 8, 4, 2, or auto: as few for each layer's "
        "keys and values as leave the next token as it is, no fewer than 4 (auto{bits=2}: than 2)",
    )
    bits.add_argument(
        "--kv",
        metavar="FORMAT[/FORMAT]",
        help="the format of decode's cache, or that of keys and of values: int8, fp8/int4",
    )
    parser.add_argument(
        "--sparse-decode",
        metavar="NAME[{...}]",
        help="on long caches most layers of decode read some pages alone: delta, "
        "delta{pages=64 page=16 recent=8 from=4096} (from the length on at which that pays)",
    )
    parser.add_argument(
        "--prompt-buckets",
        type=numbers,
        metavar="N[,N...]",
        help="constant prompt lengths, for targets without free ones: a program for each over the "
        "same weights; shorter prompts are padded to the next",
    )
    parser.add_argument("-o", "--output", help="artifact folder (default: MODEL.tokopt)")
    parser.add_argument("--target", help="where it will run (default: the best available)")
    parser.add_argument(
        "--device",
        help="what latency is predicted for: a100, h100, h200, l4, rtx4090, a generation (sm_80, "
        "sm_89, sm_90), cpu, or auto: this machine's GPU, else its CPU",
    )
    parser.add_argument("--inputs", metavar="FILE", help="safetensors the gates run on")
    parser.add_argument(
        "--outputs",
        choices=("full", "kept", "last"),
        help="full: original shapes, dropped rows 0 (default); kept: rows that stayed; last: one",
    )
    parser.add_argument(
        "--calibration",
        metavar="PATH",
        help="search for the best plan on these samples: safetensors laid out as for `tokopt eval` "
        "(answers are not needed), or a folder of pictures with a jsonl file of "
        '{"image": …, "prompt": …}',
    )
    parser.add_argument(
        "--processor",
        metavar="NAME",
        help="what makes inputs of pictures and prompts: a folder or name that transformers knows",
    )
    parser.add_argument(
        "--effort",
        choices=("quick", "default", "thorough"),
        help="how long to search; without --calibration, on the archive's example inputs",
    )
    parser.add_argument("--trials", type=int, metavar="N", help="plans to judge by running them")
    parser.add_argument(
        "--search-storage",
        metavar="FILE|URL",
        help="where a search keeps what it judged: a journal file or a database "
        "(sqlite:///search.db) that processes may share (default: beside the artifact)",
    )
    parser.add_argument(
        "--grid",
        metavar="HxW",
        help="the grid of visual tokens, for the methods that a search leaves out where the graph "
        "does not tell it",
    )
    parser.add_argument("--seed", type=int, help="seed of random selection (default: 0)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Compile, print the result on stdout and return the exit code."""
    from tokopt.cli.compiled import require_ok
    from tokopt.cli.compiler import compile
    from tokopt.passes.kv.asked import of_bits

    compiled = compile(
        args.model,
        args.output,
        budget=args.budget,
        plan=args.plan,
        method=args.method,
        attention=args.attention,
        quota=args.quota,
        kv=args.kv if args.kv_bits is None else of_bits(args.kv_bits),
        sparse_decode=args.sparse_decode,
        prompt_buckets=args.prompt_buckets,
        target=args.target,
        device=args.device,
        inputs=args.inputs,
        outputs=args.outputs,
        search=search_of(args),
        seed=args.seed,
        quiet=False,
    )
    if args.json:
        print(json.dumps(as_data(compiled)))
    else:
        show_table(compiled)
    if not compiled.ok and not args.json:
        require_ok(compiled)
    return 0 if compiled.ok else 1


def search_of(args: argparse.Namespace) -> Wanted | None:
    """Return the search that is asked for, None where none is."""
    from tokopt.cli.asked import Wanted

    given = (args.trials, args.search_storage, args.processor, args.grid)
    if all(option is None for option in (args.calibration, args.effort, *given)):
        return None
    return Wanted(args.calibration, args.effort or "default", *given)


def budgets(text: str) -> tuple[float, ...] | Limits:
    """Return the numbers of ``0.25,0.1``, or the limits of ``tokens=0.25,flops=0.3``."""
    if "=" in text:
        from tokopt.passes.limits import parse_limits

        return parse_limits(text)
    try:
        return tuple(float(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid float value: {text!r}") from error


def numbers(text: str) -> tuple[int, ...]:
    """Return the numbers of ``64,256``."""
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"invalid int value: {text!r}") from error


def quota(text: str) -> Quota:
    """Return the quota of ``image`` or ``2``."""
    from tokopt.ir.plan import checked_quota

    return checked_quota(int(text) if text.isdecimal() else text, "--quota")


def as_data(compiled: Compiled) -> dict[str, Any]:
    """Return a result for machines."""
    budget = compiled.budget
    return {
        "schema_version": 1,
        "artifact": str(compiled.folder),
        "status": compiled.manifest.status,
        "target": compiled.manifest.target,
        "budget": compiled.manifest.budget.requested.get("tokens"),
        "requested": dict(compiled.manifest.budget.requested),
        "tokens": budget.total,
        "rows": {"role": budget.role, "of": budget.of, "per_layer": list(budget.rows)},
        "attention": [vars(entry) for entry in compiled.plan.attention],
        "cache": [vars(layer) for layer in compiled.manifest.cache],
        "sparse_decode": None
        if compiled.manifest.sparse is None
        else vars(compiled.manifest.sparse),
        "flops": compiled.work.total,
        "selector_share_of_flops_saved": compiled.work.selector_share,
        "stages": [
            {**vars(stage), "selector_flops": cost.flops, "selector_bytes": cost.bytes}
            for stage, cost in zip(compiled.plan.stages, compiled.work.selector, strict=True)
        ],
        "gates": [plain(gate) for gate in compiled.manifest.gates],
        "seconds": dict(compiled.manifest.run.seconds),
        "note": compiled.note,
        "others": [as_data(other) for other in compiled.others],
    }


def show_table(compiled: Compiled) -> None:
    """Print what was compiled as a table for a person."""
    from rich.table import Table

    from tokopt.cli.console import show

    budget = compiled.budget
    work = compiled.work
    plan = Table(
        *("stage", "method", "rows kept", "of", "costs", "bytes"),
        title="plan",
        title_justify="left",
    )
    for stage, cost in zip(compiled.plan.stages, work.selector, strict=True):
        role = stage.site.partition(":")[0]
        count = budget.of if role == budget.role else budget.tower.get(role, (budget.of, ()))[0]
        shared = "" if stage.quota == "joint" else " (each image its share)"
        kept = f"{stage.keep}{shared}"
        costs = (f"{short(cost.flops)}FLOP", f"{short(cost.bytes)}B")
        site = stage.site if stage.until is None else f"{stage.site} until {stage.until}"
        plan.add_row(site, stage.method, kept, str(count), *costs)
    for entry in compiled.plan.attention:
        plan.add_row(f"{entry.site} and on", entry.method, "all (none dropped)", "", "", "")
    rows = Table(
        "layer", f"{budget.what} rows", "share", title=f"{budget.role} layers", title_justify="left"
    )
    for depths, count in _runs(budget.rows):
        rows.add_row(depths, f"{count} of {budget.of}", f"{count / budget.of:.1%}")
    rows.add_row("mean", "", f"{budget.total:.2%}", style="bold")
    gates = Table(
        "gate", "result", "difference", "compared", title="verified", title_justify="left"
    )
    for gate in compiled.manifest.gates:
        difference = "" if gate.max_difference is None else f"{gate.max_difference:.1e}"
        gates.add_row(gate.gate, "ok" if gate.passed else "FAILED", difference, gate.compared)
    show(plan, rows, gates)
    share = work.selector_share
    saved = "none saved" if share is None else f"selector share of the FLOPs saved: {share:.2%}"
    show(
        f"FLOPs of products: {short(work.original)} before, {short(work.left)} left; {saved}; "
        f"{work.total:.1%} in all"
    )
    note = f"\nnote: {compiled.note}" if compiled.note else ""
    seconds = sum(compiled.manifest.run.seconds.values())
    show(
        f"{compiled.folder}: {compiled.manifest.target}, {budget.total:.1%} of the {budget.what} "
        f"tokens in {budget.role}, compiled in {seconds:.1f} s{note}"
    )
    show_cache(compiled)
    if compiled.manifest.sparse is not None:
        show(sparse_line(vars(compiled.manifest.sparse)))
    asked = compiled.manifest.budget.requested
    if set(asked) - {"tokens"}:
        total = compiled.manifest.budget.total
        spent = (f"{k} {total[k].predicted:.4g} of at most {most:.4g}" for k, most in asked.items())
        show(f"budget: {', '.join(spent)} (latency in seconds, predicted)")
    for other in compiled.others:
        show("")
        show_table(other)


def show_cache(compiled: Compiled) -> None:
    """Print how decode's cache is stored, and how large that of a prompt is."""
    from tokopt.cli.console import show

    layers = compiled.manifest.cache
    if not layers:
        return
    formats = " and ".join(dict.fromkeys(f"{one.key}/{one.value}" for one in layers))
    stored, full = (sum(getattr(one, n) for one in layers) for n in ("bytes_per_token", "full"))
    kv = compiled.manifest.budget.total["kv"].predicted or 0.0
    show(
        f"cache: keys/values in {formats}, {stored:.0f} bytes a token in place of {full:.0f} (16 "
        f"bits); of the image {kv:.2%}, {1 / kv:.1f} times smaller"
    )
    if window := max(one.window for one in layers):
        show(f"the last rows, up to {window}, wait in 16 bits, and are counted so")
    for one in layers:
        if one.note:
            show(f"cache of layer {one.layer}: {one.note}")


def short(number: int) -> str:
    """Return ``12.3 M`` and the like."""
    size, prefix = float(number), ""
    for larger in "kMGT":
        if size < 1000:
            break
        size, prefix = size / 1000, larger
    return f"{size:.3g} {prefix}"


def _runs(rows: tuple[int, ...]) -> list[tuple[str, int]]:
    """Return equal neighbours together: ``("0-3", 14)``."""
    runs: list[list[int]] = []
    for depth, count in enumerate(rows):
        if runs and runs[-1][2] == count:
            runs[-1][1] = depth
        else:
            runs.append([depth, depth, count])
    return [(f"{a}-{b}" if a != b else str(a), count) for a, b, count in runs]
