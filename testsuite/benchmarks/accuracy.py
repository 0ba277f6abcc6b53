"""Accuracy of the trained models by method and budget: python testsuite/benchmarks/accuracy.py.

Every method of the library is compiled for every model (testsuite/models) at every budget for ONNX
Runtime with all gates (inputs: pictures of the training split), then answers held-out questions.
Writes results/accuracy-MODEL.json with everything behind it, and from those of all models a table
and a picture, results/accuracy.{md,png}, and the tables of the README (``--show``: these alone).
Whatever was measured is written at once; ``--add`` measures more beside it.
"""

import argparse
import functools
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from testsuite.benchmarks.accuracy_plot import draw
from testsuite.benchmarks.accuracy_readme import write_readme
from testsuite.benchmarks.accuracy_table import cell, control, table
from testsuite.models.build import archive
from testsuite.models.digits import KINDS, samples
from testsuite.models.family import FAMILIES

import tokopt
from tokopt.cli.compiled import Compiled, require_ok
from tokopt.cli.eval import numbers
from tokopt.cli.eval_accuracy import Accuracy, Answers, Run, answers
from tokopt.cli.eval_batch import Batch
from tokopt.cli.evaluator import original_runner
from tokopt.ir.errors import BudgetError, GateError, InputError, UnsupportedError
from tokopt.ir.load import load
from tokopt.ir.program import Program
from tokopt.ir.specialise import specialise
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.normalize import normalize
from tokopt.targets.manifest import versions
from tokopt.targets.registry import find

SEEDS = {"random": (0, 1, 2)}
"""Methods that draw, and the seeds that are averaged."""
ORDER = (0.1, 0.25, 0.5, 0.05)
"""What is measured first: a run that is stopped has written what it had."""
GRIDS = {"qwen2vl": "12x12"}
"""Where the graph does not tell the grid of the decoder's rows: what a person would state."""
TARGET, BATCH, OUTPUT = "onnxruntime-cpu", 50, "output"
RESULTS = Path(__file__).with_name("results")
FIRST_SEED = 1_000_000  # of the held-out samples; no test and no training uses those


def held_out(model: str, count: int, at_once: int | None = None) -> list[Batch]:
    """Return ``count`` held-out samples, the kinds in turn, as many at once as the model takes."""
    family, batches = FAMILIES[model], []
    at_once = at_once or family.batch
    for start in range(0, count, BATCH):
        drawn = samples(FIRST_SEED + start, min(BATCH, count - start))
        for at in range(0, len(drawn.kinds), at_once):
            some = drawn.part(at, at + at_once)
            kinds = tuple(KINDS[kind] for kind in some.kinds.tolist())
            batches.append(Batch(family.inputs(some), some.answers, kinds))
    return batches


def mean(found: Sequence[Answers], kind: str | None = None) -> Accuracy:
    """Return the mean accuracy over seeds as that of one run: seeds add no pictures."""
    each = [one.accuracy(kind) for one in found]
    return Accuracy(round(sum(a.right for a in each) / len(each)), each[0].total)


@functools.cache
def given(model: str, count: int) -> tuple[Program, list[Batch], Answers]:
    """Return the model, held-out samples, what the original answers: made once per process."""
    torch.set_num_threads(1)
    program, batches = load(archive(model)), held_out(model, count)
    with original_runner(program, find(TARGET)) as run:
        return program, batches, answers(run, OUTPUT, batches)


def one_by_one(model: str, program: Program, count: int) -> tuple[Program, list[Batch]]:
    """Return the model for one item at a time: what methods take that remember what they saw."""
    exported = normalize(program.main)
    named = {node.name: node for node in exported.graph.find_nodes(op="placeholder")}
    first = named[exported.graph_signature.user_inputs[0]].meta["val"].shape[0]
    if isinstance(first, int):
        return program, held_out(model, count)
    alone = specialise(exported, first.node.expr, 1)
    return program.with_main(alone), held_out(model, count, 1)


def compiled(
    model: str, program: Program, folder: Path, method: str, budget: float, seed: int
) -> Compiled:
    """Compile; where the method needs the grid and the graph does not tell it, state it."""
    family = FAMILIES[model]
    at_once = 1 if METHODS[method].state else min(4, family.batch)
    inputs = family.inputs(samples(0, at_once, "train"))
    names = [method]
    if model in GRIDS and "places" in METHODS[method].needs:
        names.insert(0, f"{method}{{grid={GRIDS[model]}}}")
    for name in names:
        try:
            made = tokopt.compile(
                program, folder, budget=budget, method=name, target=TARGET, inputs=inputs, seed=seed
            )
        except InputError:  # it is not the decoder's grid that the method needs
            if name == method:
                raise
            continue
        require_ok(made)
        return made
    raise AssertionError("unreachable: the last name returns or raises")


def alone(folder: Path) -> Run:
    """Return what runs an artifact: a sample is no sequel of the one before."""
    artifact = tokopt.load(folder)

    def run(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        artifact.reset()
        return artifact(inputs)

    return run


def row(model: str, count: int, method: str, budget: float) -> dict[str, Any]:
    """Compile and evaluate one method at one budget; ``refused`` says why where it cannot be."""
    program, batches, original = given(model, count)
    if METHODS[method].state:
        program, batches = one_by_one(model, program, count)
    start, found, made = time.perf_counter(), [], []
    said = {"model": model, "method": method, "budget": budget}
    for seed in SEEDS.get(method, (0,)):
        with TemporaryDirectory(prefix="tokopt-") as folder:
            try:
                one = compiled(model, program, Path(folder, "build"), method, budget, seed)
            except (BudgetError, UnsupportedError, GateError) as refusal:
                return {**said, "refused": refusal.what}
            made.append(one)
            found.append(answers(alone(one.folder), OUTPUT, batches))
    same = sum(one.agreement(original).share for one in found) / len(found)
    return {
        **said,
        **plan_data(made[0]),
        "seeds": SEEDS.get(method, (0,)),
        "right_per_seed": [one.accuracy().right for one in found],
        "all": numbers(mean(found)),
        "kinds": {kind: numbers(mean(found, kind)) for kind in KINDS},
        "same_answer_as_original": same,
        "seconds": round(time.perf_counter() - start, 1),
    }


def plan_data(made: Compiled) -> dict[str, Any]:
    """Return what was placed where, and what it spends."""
    return {
        "tokens": made.budget.total,
        "rows_per_layer": list(made.budget.rows),
        "stages": [f"{s.method} at {s.site} keeps {s.keep}" for s in made.plan.stages],
        "note": made.note,
    }


def machine() -> str:
    """Return the processor and how many of its cores are used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if sys.platform == "linux" else []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {torch.get_num_threads()} of {os.cpu_count()} threads"


def main() -> None:
    """Run everything, print the tables, write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--samples", type=int, default=500)
    flags.add_argument("--out", type=Path, default=RESULTS)
    flags.add_argument("--models", default=",".join(FAMILIES))
    flags.add_argument("--methods", default=",".join(sorted(METHODS, key=control)))
    flags.add_argument("--budgets", type=budgets, default=ORDER)
    flags.add_argument("--jobs", type=int, default=1, help="processes side by side")
    flags.add_argument("--add", action="store_true", help="keep what else was measured")
    flags.add_argument("--show", action="store_true", help="measure nothing: tables and picture")
    args = flags.parse_args()
    if args.show:
        return show(args.out)
    start, models, methods = time.perf_counter(), args.models.split(","), args.methods.split(",")
    cells = [(model, args.samples, m, b) for model in models for b in args.budgets for m in methods]
    rows: dict[str, list[dict[str, Any]]] = {model: [] for model in models}
    if args.add:
        rows = {model: kept(args, model, methods) for model in models}
    args.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(args.jobs) as pool:
        for found in pool.map(row, *zip(*cells, strict=True)):
            model = found.pop("model")
            rows[model].append(found)
            said = f"{model} {found['method']} {found['budget']}: {cell(found)}"
            print(said, file=sys.stderr, flush=True)
            write(args.out, model, rows[model], args.samples, time.perf_counter() - start)
    print((args.out / "accuracy.md").read_text())


def kept(args: argparse.Namespace, model: str, methods: Sequence[str]) -> list[dict[str, Any]]:
    """Return what the file of a model says of what is not measured again."""
    data = json.loads(results(args.out, model).read_text())
    if data["samples"] != args.samples or data["model_sha256"] != load(archive(model)).sha256:
        raise SystemExit(f"{model} was measured on {data['samples']} samples, or was another")
    again = {(method, budget) for method in methods for budget in args.budgets}
    return [row for row in data["rows"] if (row["method"], row["budget"]) not in again]


def budgets(text: str) -> tuple[float, ...]:
    """Return the numbers of ``0.5,0.05``."""
    return tuple(float(number) for number in text.split(","))


def results(folder: Path, model: str) -> Path:
    """Return where the results of a model are."""
    return folder / f"accuracy-{model}.json"


def write(
    folder: Path, model: str, rows: list[dict[str, Any]], samples: int, seconds: float
) -> None:
    """Write what was measured so far: numbers of one model, table and picture of all."""
    program, _, original = given(model, samples)
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
    results(folder, model).write_text(json.dumps(data, indent=1) + "\n")
    show(folder)


def show(folder: Path) -> None:
    """Make table and picture from the numbers of all models that were measured."""
    files = {name: results(folder, name) for name in FAMILIES}
    every = {name: json.loads(f.read_text()) for name, f in files.items() if f.exists()}
    text = "\n".join(table(name, data) for name, data in every.items())
    (folder / "accuracy.md").write_text(text)
    draw(every, folder / "accuracy.png")
    if folder == RESULTS:
        write_readme(every)


if __name__ == "__main__":
    main()
