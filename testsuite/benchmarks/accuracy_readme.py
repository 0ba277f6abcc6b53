"""The README's tables of accuracy, and which methods no control stands behind: made of results."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from testsuite.benchmarks.accuracy_table import BUDGETS, cell, infeasible, marks, of, ranked

README = Path(__file__).parents[2] / "README.md"
BLOCK = "<!-- accuracy of {name} -->\n{text}<!-- /accuracy of {name} -->"


def write_readme(models: Mapping[str, Mapping[str, Any]], file: Path = README) -> None:
    """Put the results of each model in the place that the README has for it."""
    text = file.read_text(encoding="utf-8")
    for name, data in models.items():
        block = BLOCK.format(name=name, text=summary(data))
        place = BLOCK.format(name=re.escape(name), text="[^\\0]*?")
        text = re.sub(place, lambda _, block=block: block, text)  # type: ignore[misc]
    file.write_text(text, encoding="utf-8")


def summary(data: Mapping[str, Any]) -> str:
    """Return the table of a model and what it says of methods beside the controls."""
    rows = data["rows"]
    heads = " | ".join(f"budget {budget:g}" for budget in BUDGETS)
    lines = [f"| method | {heads} |", "|---" * (len(BUDGETS) + 1) + "|"]
    refused = []
    for method in ranked(rows):
        each = of(rows, method)
        if all("refused" in row and not infeasible(row) for row in each.values()):
            refused.append(method)
            continue
        cells = [cell(each[b]) if b in each else "not measured" for b in BUDGETS]
        seeds = max(len(row.get("seeds", ())) for row in each.values())
        said = method if seeds < 2 else f"{method}, mean of {seeds} seeds"
        lines.append(f"| {said} | {' | '.join(cells)} |")
    original = cell({"all": data["original"]["all"], "note": ""})
    lines.append(f"| *original, all tokens* | {' | '.join([original] * len(BUDGETS))} |")
    text = "\n".join(lines).replace(" to ", "–")
    return f"{text}\n\n{verdict(rows, refused)}\n"


def verdict(rows: Sequence[dict[str, Any]], refused: Sequence[str]) -> str:
    """Return the methods that at no budget measured are better than a control, in words."""
    found = {method: marks(rows, method) for method in ranked(rows)}
    sentences = [
        f"At no budget measured better than {control} with as many tokens (the intervals overlap, "
        f"or it is below): {names([m for m, mark in found.items() if sign in mark])}."
        for control, sign in (("`random`", "†"), ("`downsample`", "‡"))
    ]
    sentences += [f"Refused on this model: {names(refused)}."] if refused else []
    return "\n".join(sentences)


def names(methods: Sequence[str]) -> str:
    """Return ``a``, ``b``, or none."""
    return ", ".join(f"`{method}`" for method in sorted(methods)) or "none"
