"""A picture of accuracy against tokens kept: a panel per model, one line per method.

A method has the same colour and marker in all panels and its name at its line's end; controls are
black and dashed.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testsuite.benchmarks.accuracy_table import control, ranked

MARKERS = "osD^v"
LOWEST, HIGHEST = 24, 102
"""Per cent; a guess is right in 32 of 100."""
APART = 2.5
"""Between the names of two lines, per cent."""


def draw(models: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Draw the results of ``accuracy.py``; says so where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        print(f"{path} is not drawn again: matplotlib is not installed", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (6.6 * len(models), 7.0)
    figure, panels = pyplot.subplots(
        1, len(models), figsize=size, sharey=True, squeeze=False, layout="constrained"
    )
    named = dict.fromkeys(name for data in models.values() for name in ranked(data["rows"]))
    looks = styles(list(named), pyplot.get_cmap("tab10"))
    for axes, (model, data) in zip(panels[0], models.items(), strict=True):
        panel(axes, model, data, looks)
    panels[0][0].set_ylabel("held-out questions answered right, per cent")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def styles(names: list[str], colours: Any) -> dict[str, dict[str, Any]]:
    """Return how each method is drawn: no two have the same colour and marker."""
    looks: dict[str, dict[str, Any]] = {}
    for number, name in enumerate([n for n in names if not control(n)]):
        marker = MARKERS[number // 10 % len(MARKERS)]
        looks[name] = {"color": colours(number % 10), "marker": marker, "linestyle": "-"}
    for number, name in enumerate([n for n in names if control(n)]):
        looks[name] = {"color": "black", "marker": MARKERS[number], "linestyle": "--"}
    return looks


def panel(axes: Any, model: str, data: dict[str, Any], looks: dict[str, dict[str, Any]]) -> None:
    """Draw one model."""
    ends: dict[str, tuple[float, float]] = {}
    for name, look in looks.items():
        rows = [r for r in data["rows"] if r["method"] == name and "refused" not in r]
        if rows:
            points = sorted((100 * r["tokens"], 100 * r["all"]["accuracy"]) for r in rows)
            axes.plot(*zip(*points, strict=True), markersize=4, alpha=0.85, **look)
            ends[name] = points[-1]
    for name, height in spread({name: end[1] for name, end in ends.items()}).items():
        look, (tokens, accuracy) = looks[name], ends[name]
        axes.plot([tokens, 58], [accuracy, height], color=look["color"], linewidth=0.4)
        axes.plot(60, height, markersize=4, **look)
        axes.text(63, height, name, color=look["color"], fontsize=8, va="center")
    whole = 100 * data["original"]["all"]["accuracy"]
    axes.axhline(whole, color="grey", linewidth=0.8)
    axes.annotate(
        f"all tokens: {whole:.1f}",
        (7, max(whole, 98.6)),
        (0, 4),
        textcoords="offset points",
        ha="center",
    )
    axes.set_title(f"{model}, {data['samples']} questions")
    axes.set_xscale("log")
    ticks = [5, 10, 25, 50]
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set(xlim=(4.3, 110), ylim=(LOWEST, HIGHEST))
    axes.set_xlabel("visual tokens kept, mean over the decoder's layers")
    axes.spines[["top", "right"]].set_visible(False)


def spread(heights: Mapping[str, float]) -> dict[str, float]:
    """Return heights in the same order, near those given, none nearer than ``APART`` to another."""
    order = sorted(heights, key=heights.__getitem__)
    placed: dict[str, float] = {}
    ceiling = HIGHEST - 1.0
    for name in reversed(order):  # from above, no higher than there is room
        placed[name] = min(heights[name], ceiling)
        ceiling = placed[name] - APART
    floor = LOWEST + 1.0
    for name in order:  # from below, where that left too little
        placed[name] = max(placed[name], floor)
        floor = placed[name] + APART
    return placed
