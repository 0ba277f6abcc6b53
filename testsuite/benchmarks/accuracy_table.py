"""Accuracy table: what ``accuracy.py`` measured on one model, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from tokopt.passes.methods.registry import METHODS

BUDGETS = (0.5, 0.25, 0.1, 0.05)
FIRST = 0.1
"""The budget by which methods are ranked."""

LEGEND = (
    "*moved*: stages stand earlier than published, where they can meet the budget; *infeasible*: "
    "not even there (a stage behind a layer pays for it); *refused*: not on this model, see below; "
    "†: at no budget better than random with as many tokens (their intervals overlap or it is "
    "below); ‡: nor than down-sampling."
)


def table(name: str, data: Mapping[str, Any]) -> str:
    """Return the results on one model as Markdown, with what did not work and why."""
    rows = data["rows"]
    heads = [f"{budget:.0%} of the visual tokens" for budget in BUDGETS]
    lines = [f"## {name}", "", f"| method | {' | '.join(heads)} |", "|---" * 5 + "|"]
    for method in ranked(rows):
        each = of(rows, method)
        cells = [cell(each[b]) if b in each else "not measured" for b in BUDGETS]
        seeds = max(len(row.get("seeds", ())) for row in each.values())
        said = method if seeds < 2 else f"{method}, mean of {seeds} seeds"
        lines.append(f"| {said}{marks(rows, method)} | {' | '.join(cells)} |")
    original = data["original"]["all"]
    lines.append(f"| *original, all tokens* | {' | '.join([percent(original)] * len(BUDGETS))} |")
    lines += ["", *refusals(rows)]
    at, by = data["versions"], data["command"]
    lines += [
        f"Held-out questions answered right, per cent (95 % interval), {data['samples']} samples; "
        f"tokopt {at['tokopt']}, ONNX Runtime {at['onnxruntime']}, {data['date']}, `{by}`.",
        LEGEND,
    ]
    return "\n".join([*lines, ""])


def of(rows: Sequence[dict[str, Any]], method: str) -> dict[float, dict[str, Any]]:
    """Return the rows of a method by budget."""
    return {row["budget"]: row for row in rows if row["method"] == method}


def control(method: str) -> bool:
    """Return whether that is a control, not a published method."""
    return METHODS[method].paper == "control"


def ranked(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the methods, best at ``FIRST`` first, then by their best elsewhere; controls last."""

    def order(method: str) -> tuple[bool, float, float, str]:
        found = {b: row["all"]["accuracy"] for b, row in of(rows, method).items() if "all" in row}
        return control(method), -found.get(FIRST, -1), -max(found.values(), default=-1), method

    return sorted({row["method"] for row in rows}, key=order)


def marks(rows: Sequence[dict[str, Any]], method: str) -> str:
    """Return the daggers of a method: which controls it beats nowhere."""
    mine = {b: row for b, row in of(rows, method).items() if "all" in row}
    if control(method) or not mine:
        return ""

    def beats(other: str) -> bool:
        theirs = of(rows, other)
        pairs = [(row, theirs[b]) for b, row in mine.items() if "all" in theirs.get(b, {})]
        return not pairs or any(a["all"]["low"] > b["all"]["high"] for a, b in pairs)

    return ("" if beats("random") else " †") + ("" if beats("downsample") else " ‡")


def cell(result: Mapping[str, Any]) -> str:
    """Return one cell: the accuracy, or why there is none."""
    if "refused" in result:
        return "*infeasible*" if infeasible(result) else "*refused*"
    return percent(result["all"]) + (", *moved*" if " moved from " in result["note"] else "")


def infeasible(result: Mapping[str, Any]) -> bool:
    """Return whether only the budget is in the way."""
    return "cannot meet the budget" in str(result["refused"])


def refusals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return a line for every method that was refused for another reason than its budget."""
    said = dict.fromkeys(
        (r["method"], r["refused"]) for r in rows if "refused" in r and not infeasible(r)
    )
    lines = [f"- *refused*: {method}: {why}" for method, why in sorted(said)]
    return [*lines, ""] if lines else []


def percent(accuracy: Mapping[str, Any]) -> str:
    """Return ``98.8 (98.1 to 99.3)``."""
    low, high = 100 * accuracy["low"], 100 * accuracy["high"]
    return f"{100 * accuracy['accuracy']:.1f} ({low:.1f} to {high:.1f})"
