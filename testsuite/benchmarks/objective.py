"""What the objective tells: PYTHONPATH=src:. python testsuite/benchmarks/objective.py.

Every method's plan at every budget is judged on training samples, sample by sample, beside the
accuracy it has on held-out questions (results/accuracy-MODEL.json).  For each measure and number
of samples, drawn again and again from those: the accuracy of the plan the measure would choose, and
Spearman's correlation of nearness with accuracy.  Plans that answer far worse are told apart by
every measure and are left out (``--least``).  Writes results/objective.{json,md}.
"""

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any

import torch
from scipy.stats import spearmanr
from testsuite.benchmarks.accuracy import GRIDS, RESULTS, given, machine, results
from testsuite.benchmarks.search import BUDGETS, calibration
from testsuite.models.family import FAMILIES
from torch import Tensor

from tokopt.ir.errors import BudgetError, InputError, UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.passes.apply_plan import apply_plan
from tokopt.passes.fit import fit
from tokopt.passes.methods.method import GRID
from tokopt.passes.methods.registry import METHODS, find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.observe import average_entropies, observe
from tokopt.passes.search.objective import Objective
from tokopt.passes.search.replay import Replay
from tokopt.passes.search.sized import sized

COUNTS, DRAWS = (12, 32, 64), 500
MEASURES: Mapping[str, Callable[[Tensor, Tensor], float]] = {
    "kl": lambda kl, cosine: float(kl.mean()),
    "cosine": lambda kl, cosine: float(cosine.mean()),
    "kl + cosine": lambda kl, cosine: float((kl + cosine).mean()),
    "kl x cosine": lambda kl, cosine: float(kl.mean() * cosine.mean()),
}

Judged = dict[str, tuple[Tensor, Tensor, float]]
"""By method: kl and cosine of each sample, and the accuracy."""


def judged(model: str, samples: int, least: float) -> dict[str, Judged]:
    """Judge every method's plan, by budget."""
    accuracies = {
        (row["budget"], row["method"]): row["all"]["accuracy"]
        for row in json.loads(results(RESULTS, model).read_text())["rows"]
        if "all" in row
    }
    program, _, _ = given(model, 1)
    found: dict[str, Judged] = {budget: {} for budget in BUDGETS}
    with torch.no_grad():
        batches = calibration(model, samples)
        facts = sized(analyse(normalize(program.main)), batches)
        seen = [observe(facts, batch) for batch in batches]
        objective = Objective(facts, Replay(facts.exported, batches), seen)
        for budget in BUDGETS:
            for name, method in METHODS.items():
                accuracy = accuracies.get((float(budget), name), 0.0)
                if accuracy < least or method.ordered:  # orders are measured on these samples
                    continue
                stated = model in GRIDS and "places" in method.needs
                options: dict[str, int | float | str] = {GRID: GRIDS[model]} if stated else {}
                try:
                    entropies = average_entropies(seen)
                    plan = fit(facts, method, float(budget), entropies, options=options).plan
                    exported = apply_plan(facts.exported, plan, find_method).exported
                except (UnsupportedError, InputError, BudgetError):
                    continue
                each = [distances for _, distances in objective.distances(exported)]
                kl, cosine = (torch.cat([one[m] for one in each]) for m in ("kl", "cosine"))
                found[budget][name] = (kl, cosine, accuracy)
    return found


def told(plans: Judged, measure: str, count: int) -> tuple[float, float]:
    """Return the accuracy of the nearest plan, and the rank correlation, in the mean of draws."""
    names, chance = list(plans), torch.Generator().manual_seed(0)
    right = [plans[name][2] for name in names]
    accuracy = correlation = 0.0
    for _ in range(DRAWS):
        some = torch.randperm(len(plans[names[0]][0]), generator=chance)[:count]
        far = [MEASURES[measure](plans[n][0][some], plans[n][1][some]) for n in names]
        accuracy += right[far.index(min(far))] / DRAWS
        correlation += float(spearmanr([-one for one in far], right)[0]) / DRAWS
    return accuracy, correlation


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown, and their mean."""
    heads = [f"{measure}, {count}" for measure in MEASURES for count in COUNTS]
    lines = [
        "Accuracy of the plan chosen (Spearman of nearness with accuracy), by measure and samples.",
        "",
        "| model | budget | plans | best | " + " | ".join(heads) + " |",
        "|" + "---|" * (len(heads) + 4),
    ]
    for row in rows:
        cells = [f"{100 * a:.1f} ({c:.2f})" for a, c in row["told"].values()]
        start = f"| {row['model']} | {row['budget']} | {row['plans']} | {100 * row['best']:.1f} | "
        lines.append(start + " | ".join(cells) + " |")
    means = [
        [sum(row["told"][head][i] for row in rows) / len(rows) for i in (0, 1)] for head in heads
    ]
    best = sum(row["best"] for row in rows) / len(rows)
    cells = [f"{100 * a:.2f} ({c:.2f})" for a, c in means]
    lines.append(f"| mean | | | {100 * best:.2f} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write the results."""
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--models", default=",".join(FAMILIES))
    flags.add_argument("--samples", type=int, default=128)
    flags.add_argument("--least", type=float, default=0.9, help="accuracy of plans compared")
    args = flags.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for model in args.models.split(","):
        for budget, plans in judged(model, args.samples, args.least).items():
            heads = {f"{m}, {count}": told(plans, m, count) for m in MEASURES for count in COUNTS}
            best = max(right for _, _, right in plans.values())
            cell = {"model": model, "budget": float(budget), "plans": len(plans), "best": best}
            rows.append({**cell, "told": heads})
    data = {"machine": machine(), "samples": args.samples, "least": args.least, "rows": rows}
    (RESULTS / "objective.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / "objective.md").write_text(table(rows))
    print(table(rows))


if __name__ == "__main__":
    main()
