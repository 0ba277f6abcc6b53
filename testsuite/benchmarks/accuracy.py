"""Accuracy of the digits model by method and budget: python testsuite/benchmarks/accuracy.py.

Every method of the library is compiled at every budget for ONNX Runtime with all gates (inputs:
pictures of the training split), then answers held-out questions.  Prints a Markdown table and
writes it with everything behind it, and a picture, to results/accuracy.{json,md,png}.
"""

import argparse
import functools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from testsuite.benchmarks.accuracy_plot import draw
from testsuite.models.build import ARCHIVE
from testsuite.models.digits import KINDS, samples

import tokopt
from tokopt.cli.compiler import Compiled, require_ok
from tokopt.cli.eval import numbers
from tokopt.cli.eval_accuracy import Accuracy, Answers, answers
from tokopt.cli.eval_batch import Batch
from tokopt.cli.evaluator import original_runner
from tokopt.ir.errors import BudgetError, GateError, UnsupportedError
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.passes.methods.registry import METHODS
from tokopt.targets.manifest import versions
from tokopt.targets.registry import find

SEEDS = {"random": (0, 1, 2)}
"""Methods that draw, and the seeds that are averaged."""
BUDGETS = (0.5, 0.25, 0.1, 0.05)
ORDER = (0.1, 0.25, 0.5, 0.05)
"""What is measured first: a run that is stopped has written what it had."""
TARGET, BATCH, OUTPUT = "onnxruntime-cpu", 50, "output"
RESULTS = Path(__file__).with_name("results")
FIRST_SEED = 1_000_000  # of the held-out samples; no test and no training uses those


def held_out(count: int) -> list[Batch]:
    """Return ``count`` held-out samples, the kinds in turn."""
    batches = []
    for start in range(0, count, BATCH):
        asked = samples(FIRST_SEED + start, min(BATCH, count - start))
        inputs = {"pixel_values": asked.pixel_values, "input_ids": asked.input_ids}
        kinds = tuple(KINDS[kind] for kind in asked.kinds.tolist())
        batches.append(Batch(inputs, asked.answers, kinds))
    return batches


def mean(found: Sequence[Answers], kind: str | None = None) -> Accuracy:
    """Return the mean accuracy over seeds as that of one run: seeds add no pictures."""
    each = [one.accuracy(kind) for one in found]
    return Accuracy(round(sum(a.right for a in each) / len(each)), each[0].total)


@functools.cache
def given(count: int) -> tuple[Program, list[Batch], Answers]:
    """Return the model, held-out samples, what the original answers: made once per process."""
    torch.set_num_threads(1)
    program, batches = load(ARCHIVE), held_out(count)
    with original_runner(program, find(TARGET)) as run:
        return program, batches, answers(run, OUTPUT, batches)


def row(count: int, method: str, budget: float) -> dict[str, Any]:
    """Compile and evaluate one method at one budget; ``refused`` says why where it cannot be."""
    program, batches, original = given(count)
    start, found, made = time.perf_counter(), [], []
    asked = samples(0, 4, "train")
    inputs = {"pixel_values": asked.pixel_values, "input_ids": asked.input_ids}
    for seed in SEEDS.get(method, (0,)):
        with TemporaryDirectory(prefix="tokopt-") as folder:
            try:
                compiled = tokopt.compile(
                    program,
                    Path(folder, "build"),
                    budget=budget,
                    method=method,
                    target=TARGET,
                    inputs=inputs,
                    seed=seed,
                )
                require_ok(compiled)
            except (BudgetError, UnsupportedError, GateError) as refusal:
                return {"method": method, "budget": budget, "refused": refusal.what}
            made.append(compiled)
            found.append(answers(tokopt.load(compiled.folder), OUTPUT, batches))
    same = sum(one.agreement(original).share for one in found) / len(found)
    return {
        "method": method,
        "budget": budget,
        **plan_data(made[0]),
        "seeds": SEEDS.get(method, (0,)),
        "right_per_seed": [one.accuracy().right for one in found],
        "all": numbers(mean(found)),
        "kinds": {kind: numbers(mean(found, kind)) for kind in KINDS},
        "same_answer_as_original": same,
        "seconds": round(time.perf_counter() - start, 1),
    }


def plan_data(compiled: Compiled) -> dict[str, Any]:
    """Return what was placed where, and what it spends."""
    return {
        "tokens": compiled.budget.total,
        "rows_per_layer": list(compiled.budget.rows),
        "stages": [f"{s.method} at {s.site} keeps {s.keep}" for s in compiled.plan.stages],
        "note": compiled.note,
    }


def table(data: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    heads = [f"{budget:.0%} of the visual tokens" for budget in BUDGETS]
    lines = [f"| method | {' | '.join(heads)} |", "|" + "---|" * (1 + len(BUDGETS))]
    for method in ranked(data["rows"]):
        each = {row["budget"]: row for row in data["rows"] if row["method"] == method}
        cells = [cell(each[b]) if b in each else "not measured" for b in BUDGETS]
        seeds = SEEDS.get(method, (0,))
        name = method if len(seeds) == 1 else f"{method}, mean of {len(seeds)} seeds"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    original = data["original"]["all"]
    lines.append(f"| *original, all tokens* | {' | '.join([percent(original)] * len(BUDGETS))} |")
    at, by = data["versions"], data["command"]
    said = (
        f"Held-out questions answered right, per cent (95 % interval), {data['samples']} samples; "
        f"tokopt {at['tokopt']}, ONNX Runtime {at['onnxruntime']}, {data['date']}, `{by}`."
    )
    moved = (
        "*moved*: stages stand earlier than published, where they can meet the budget; "
        "*infeasible*: not even there (a stage behind a layer pays for it)."
    )
    return "\n".join([*lines, "", said, moved, ""])


def ranked(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the methods, best at the first budget measured first, the controls last."""
    right = {row["method"]: row["all"]["accuracy"] for row in rows[::-1] if "all" in row}
    first = {
        row["method"]: row["all"]["accuracy"]
        for row in rows
        if "all" in row and row["budget"] == ORDER[0]
    }
    names = dict.fromkeys(row["method"] for row in rows)
    return sorted(
        names,
        key=lambda m: (METHODS[m].paper == "control", -first.get(m, -1), -right.get(m, -1), m),
    )


def cell(result: dict[str, Any]) -> str:
    """Return one cell: the accuracy, or why there is none."""
    if "refused" in result:
        refused = str(result["refused"])
        return "*infeasible*" if "cannot meet the budget" in refused else refused
    return percent(result["all"]) + (", *moved*" if " moved from " in result["note"] else "")


def percent(accuracy: dict[str, Any]) -> str:
    """Return ``98.8 (98.1 to 99.3)``."""
    low, high = 100 * accuracy["low"], 100 * accuracy["high"]
    return f"{100 * accuracy['accuracy']:.1f} ({low:.1f} to {high:.1f})"


def machine() -> str:
    """Return the processor and how many of its cores are used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def by_paper() -> list[str]:
    """Return every method's name, the controls last."""
    return sorted(METHODS, key=lambda name: (METHODS[name].paper == "control", name))


def main() -> None:
    """Run everything, print the table, write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--samples", type=int, default=500)
    flags.add_argument("--out", type=Path, default=RESULTS)
    flags.add_argument("--methods", default=",".join(by_paper()))
    flags.add_argument("--jobs", type=int, default=1, help="processes side by side")
    args = flags.parse_args()
    start = time.perf_counter()
    methods = args.methods.split(",")
    cells = [(args.samples, m, b) for b in ORDER for m in methods]
    rows: list[dict[str, Any]] = []
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs) as pool:
        for found in pool.map(row, *zip(*cells, strict=True)):
            rows.append(found)
            said = f"{found['method']} {found['budget']}: {cell(found)}"
            print(said, file=sys.stderr, flush=True)
            write(args.out, rows, args.samples, time.perf_counter() - start)
    print((args.out / "accuracy.md").read_text())


def write(folder: Path, rows: list[dict[str, Any]], samples: int, seconds: float) -> None:
    """Write what was measured so far: numbers, table and picture."""
    program, _, original = given(samples)
    kinds = {kind: numbers(original.accuracy(kind)) for kind in KINDS}
    data = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": shlex.join(["python", "testsuite/benchmarks/accuracy.py", *sys.argv[1:]]),
        "samples": samples,
        "machine": machine(),
        "versions": versions(),
        "model_sha256": program.sha256,
        "seconds": round(seconds, 1),
        "original": {"all": numbers(original.accuracy()), "kinds": kinds},
        "rows": rows,
    }
    (folder / "accuracy.json").write_text(json.dumps(data, indent=1) + "\n")
    (folder / "accuracy.md").write_text(table(data))
    draw(data, folder / "accuracy.png")


if __name__ == "__main__":
    main()
