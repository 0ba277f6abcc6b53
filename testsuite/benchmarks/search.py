"""The search against every method: PYTHONPATH=src:. python testsuite/benchmarks/search.py.

Plans are searched on training pictures, then answer held-out questions through ONNX Runtime, beside
the methods at the same budget (results/accuracy-MODEL.json, the same questions).  Also: how plans
judged are ordered by the objective and by accuracy and by retained flow (Spearman), and how long a
plan takes, everything the search does included, against a plain loop over the same plans that
rewrites the program as it came and runs it and the original on all samples from the start.  Both
in processor seconds of one thread, so that other work on the machine does not tell.
Writes results/search.{json,md}; whatever was measured is written at once, and what is there already
(on as many samples and trials, with the same methods) is not measured again: a run that was killed
goes on.  ``--again`` searches once more with the same seed and notes whether the plan is the same.
"""

import argparse
import json
import shlex
import sys
import time
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from scipy.stats import spearmanr
from testsuite.benchmarks.accuracy import GRIDS, OUTPUT, RESULTS, TARGET, given, machine, results
from testsuite.models.digits import samples
from testsuite.models.family import FAMILIES

import tokopt
from tokopt.cli.eval import numbers
from tokopt.cli.eval_accuracy import answers
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.methods.order import ORDER
from tokopt.passes.methods.registry import METHODS, find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.search.effort import EFFORTS
from tokopt.passes.search.objective import MEASURES
from tokopt.passes.search.search import Found, Search
from tokopt.passes.validate import run_program
from tokopt.targets.manifest import versions

BUDGETS = ("0.1", "0.25", "0.05")
PLAIN = 8
"""Plans that the plain loop is timed on, evenly spaced among those the search judged."""


def calibration(model: str, count: int) -> list[dict[str, torch.Tensor]]:
    """Return training pictures and questions, as many at once as the model takes (at most 32)."""
    family, drawn = FAMILIES[model], samples(0, count, "train")
    size = min(32, family.batch)
    return [family.inputs(drawn.part(at, at + size)) for at in range(0, count, size)]


def searched(model: str, budget: str, count: int, held_out: int, trials: int) -> dict[str, Any]:
    """Search, compile and evaluate at one budget."""
    program, batches, original = given(model, held_out)
    with torch.no_grad():
        facts = analyse(normalize(program.main))
        start = time.process_time()
        grid = GRIDS.get(model)
        search = Search(facts, calibration(model, count), Fraction(budget), METHODS, grid=grid)
        found = search.run(EFFORTS["default"].with_trials(trials))
        seconds = time.process_time() - start
        plain = plain_seconds(facts, search, found)
        flows = [(j, search._flow.retained(j.plan)) for j in found.judged if may_flow(search, j)]
    with TemporaryDirectory(prefix="tokopt-") as folder:
        made = tokopt.compile(
            program,
            Path(folder, "build"),
            plan=found.best.plan,
            target=TARGET,
            inputs=FAMILIES[model].inputs(samples(0, min(4, FAMILIES[model].batch), "train")),
        )
        told = answers(tokopt.load(made.folder), OUTPUT, batches)
    judged = [j for j in found.judged if j.plan is not None]
    best = found.best
    assert best.plan is not None
    return {
        "model": model,
        "budget": float(budget),
        "samples": count,
        "trials": trials,
        "methods": sorted(METHODS),
        "command": shlex.join(["python", "testsuite/benchmarks/search.py", *sys.argv[1:]]),
        "plan": told_plan(best.plan),
        "origin": best.origin,
        "distance": dict(best.values),
        "published": {j.origin: dict(j.values) for j in judged if j.origin != "search"},
        "accuracy": numbers(told.accuracy()),
        "same_answer_as_original": told.agreement(original).share,
        "order": {m: order(model, budget, judged, m) for m in MEASURES},
        "flow_to_distance": rank([f for _, f in flows], [-j.values["cosine"] for j, _ in flows]),
        "judged": len(judged),
        "seconds": round(seconds, 1),
        "seconds_a_plan": round(seconds / max(len(judged), 1), 3),
        "plain_loop_seconds_a_plan": round(plain, 3),
    }


def may_flow(search: Search, judged: Any) -> bool:
    """Return whether a plan's flow is known without scoring anything anew."""
    return judged.plan is not None and all(map(search._flow.knows, judged.plan.stages))


def plain_seconds(facts: Facts, search: Search, found: Found) -> float:
    """Return what a plan takes to be rewritten and run whole, on all samples, on average."""
    judged = [j.plan for j in found.judged if j.plan is not None]
    plans = judged[:: -(-len(judged) // PLAIN)]
    start = time.process_time()
    for plan in plans:
        applied = apply_plan(facts.exported, plan, find_method)
        for inputs in search._objective.replay.batches:
            run_program(facts.exported, inputs)
            run_program(applied.exported, with_memory(applied.memory, inputs))
    return (time.process_time() - start) / len(plans)


def order(model: str, budget: str, judged: list[Any], measure: str) -> float | None:
    """Return Spearman's correlation of nearness with the methods' accuracy at this budget."""
    rows = json.loads(results(RESULTS, model).read_text())["rows"]
    right = {
        r["method"]: r["all"]["right"] for r in rows if r["budget"] == float(budget) and "all" in r
    }
    pairs = [(-j.values[measure], right[j.origin]) for j in judged if j.origin in right]
    return rank([a for a, _ in pairs], [b for _, b in pairs])


def rank(first: list[float], second: list[float]) -> float | None:
    """Return Spearman's correlation, None for fewer than five."""
    return round(float(spearmanr(first, second)[0]), 3) if len(first) > 4 else None


def repeated(row: dict[str, Any]) -> bool:
    """Return whether a second search with the seed of a row finds the row's plan."""
    program, _, _ = given(row["model"], 1)
    with torch.no_grad():
        facts = analyse(normalize(program.main))
        batches = calibration(row["model"], row["samples"])
        grid = GRIDS.get(row["model"])
        search = Search(facts, batches, Fraction(str(row["budget"])), METHODS, grid=grid)
        best = search.run(EFFORTS["default"].with_trials(row["trials"])).best.plan
    return best is not None and told_plan(best) == row["plan"]


def told_plan(plan: Plan) -> list[str]:
    """Return a plan's stages in words."""
    return [
        f"{s.method} at {s.site} keeps {s.keep}"
        + "".join(f", {k} {v}" for k, v in s.options.items() if k != ORDER)
        for s in plan.stages
    ]


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a Markdown table."""
    lines = [
        "| model | budget | plan found | accuracy | best method | plans "
        "| processor s a plan (plain loop) |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        known = json.loads(results(RESULTS, row["model"]).read_text())["rows"]
        same = [r for r in known if r["budget"] == row["budget"] and "all" in r]
        best = max(same, key=lambda r: r["all"]["accuracy"])
        lines.append(
            f"| {row['model']} | {row['budget']} | {'; '.join(row['plan'])} | "
            f"{percent(row['accuracy'])} | {best['method']} {percent(best['all'])} | "
            f"{row['judged']} | {row['seconds_a_plan']} ({row['plain_loop_seconds_a_plan']}) |"
        )
    return "\n".join(lines) + "\n"


def beside(rows: list[dict[str, Any]]) -> str:
    """Return tables of every method at each row's budget: distance, accuracy, and its retention."""
    parts = []
    for row in rows:
        known = json.loads(results(RESULTS, row["model"]).read_text())
        whole = known["original"]["all"]["accuracy"]
        same = [r for r in known["rows"] if r["budget"] == row["budget"] and "all" in r]
        entries = [(r["method"], r["all"], row["published"].get(r["method"])) for r in same]
        entries.append(("**search**", row["accuracy"], row["distance"]))
        entries.sort(key=lambda e: -e[1]["accuracy"])
        lines = [
            f"### {row['model']} at {row['budget']}",
            "",
            "| method | kl | 1 - cosine | accuracy | of the original's |",
            "|---|---|---|---|---|",
        ]
        for name, found, distance in entries:
            near = " | " if distance is None else f"{distance['kl']:.4f} | {distance['cosine']:.4f}"
            kept = f"{100 * found['accuracy'] / whole:.1f} %"
            lines.append(f"| {name} | {near} | {percent(found)} | {kept} |")
        orders = ", ".join(f"{m} {v}" for m, v in row["order"].items())
        lines += [
            "",
            f"Spearman of nearness with accuracy over the methods: {orders}; "
            f"of retained flow with nearness (cosine): {row['flow_to_distance']}. "
            f"{row['judged']} plans in {row['seconds']} processor s, searched on "
            f"{row['samples']} samples with {row['trials']} trials."
            + (f" Same seed, same plan: {row['again']}." if "again" in row else ""),
        ]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def percent(found: dict[str, float]) -> str:
    """Return ``98.0 (96.4 to 98.9)``."""
    low, high = 100 * found["low"], 100 * found["high"]
    return f"{100 * found['accuracy']:.1f} ({low:.1f} to {high:.1f})"


def main() -> None:
    """Search everything that is asked for and write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--models", default=",".join(FAMILIES))
    flags.add_argument("--budgets", default=",".join(BUDGETS))
    flags.add_argument("--samples", type=int, default=96, help="to search on")
    flags.add_argument("--trials", type=int, default=48)
    flags.add_argument("--again", action="store_true", help="search each twice, as a check")
    args = flags.parse_args()
    torch.set_num_threads(1)
    rows = written()
    asked = {"samples": args.samples, "trials": args.trials, "methods": sorted(METHODS)}
    for model in args.models.split(","):
        held_out = json.loads(results(RESULTS, model).read_text())["samples"]
        for budget in args.budgets.split(","):
            cell = {"model": model, "budget": float(budget)}
            found = [r for r in rows if {key: r.get(key) for key in cell} == cell]
            row = next((r for r in found if {key: r.get(key) for key in asked} == asked), None)
            if row is None:
                row = searched(model, budget, args.samples, held_out, args.trials)
                rows = [*(r for r in rows if r not in found), row]
                write(rows)
            if args.again and "again" not in row:
                row["again"] = repeated(row)
                write(rows)
            print(table([row]), file=sys.stderr, flush=True)


def written() -> list[dict[str, Any]]:
    """Return the rows that an earlier run wrote."""
    path = RESULTS / "search.json"
    rows: list[dict[str, Any]] = json.loads(path.read_text())["rows"] if path.is_file() else []
    return rows


def write(rows: list[dict[str, Any]]) -> None:
    """Write what was measured so far."""
    rows = sorted(rows, key=lambda row: (row["model"], -row["budget"]))
    data = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "rows": rows,
    }
    (RESULTS / "search.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / "search.md").write_text(table(rows) + "\n" + beside(rows))


if __name__ == "__main__":
    main()
