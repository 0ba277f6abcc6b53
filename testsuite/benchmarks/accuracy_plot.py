"""A picture of accuracy against tokens kept: a panel per model, one line per method.

A method has the same colour and marker in all panels; controls are black and dashed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testsuite.benchmarks.accuracy_table import control, ranked

MARKERS = "osD^v"


def draw(models: Mapping[str, dict[str, Any]], path: Path) -> None:
    """Draw the results of ``accuracy.py``; does nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (5.2 * len(models) + 2.2, 6.2)
    figure, panels = pyplot.subplots(
        1, len(models), figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    named = dict.fromkeys(name for data in models.values() for name in ranked(data["rows"]))
    looks = styles(list(named), pyplot.get_cmap("tab10"))
    for axes, (model, data) in zip(panels[0], models.items(), strict=True):
        panel(axes, model, data, looks)
    panels[0][0].set_ylabel("held-out questions answered right, per cent")
    found: dict[str, Any] = {}
    for axes in panels[0]:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    shown = [name for name in looks if name in found]
    shown.sort(key=control)
    figure.legend([found[name] for name in shown], shown, loc="outside right center", frameon=False)
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
    for name, look in looks.items():
        rows = [r for r in data["rows"] if r["method"] == name and "refused" not in r]
        if rows:
            points = sorted((100 * r["tokens"], 100 * r["all"]["accuracy"]) for r in rows)
            axes.plot(*zip(*points, strict=True), markersize=4, label=name, alpha=0.85, **look)
    whole = 100 * data["original"]["all"]["accuracy"]
    axes.axhline(whole, color="grey", linewidth=0.8)
    axes.annotate(
        f"all tokens: {whole:.1f}", (15, whole), (0, 6), textcoords="offset points", ha="center"
    )
    axes.set_title(f"{model}, {data['samples']} questions")
    axes.set_xscale("log")
    ticks = [5, 10, 25, 50]
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_ylim(20, 102)  # a guess is right in 32 of 100
    axes.set_xlabel("visual tokens kept, mean over the decoder's layers")
    axes.spines[["top", "right"]].set_visible(False)
