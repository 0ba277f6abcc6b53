"""A picture of accuracy against tokens kept: one line per method, controls dashed."""

from pathlib import Path
from typing import Any

from tokopt.passes.methods.registry import METHODS


def draw(data: dict[str, Any], path: Path) -> None:
    """Draw the results of ``accuracy.py``; does nothing where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5), layout="constrained")
    names = list(dict.fromkeys(row["method"] for row in data["rows"]))
    shades = pyplot.get_cmap("tab20")
    ends = []
    for number, name in enumerate(names):
        rows = [r for r in data["rows"] if r["method"] == name and "refused" not in r]
        if not rows:
            continue
        points = sorted((100 * r["tokens"], 100 * r["all"]["accuracy"]) for r in rows)
        control = METHODS[name].paper == "control"
        style = {"linestyle": "--" if control else "-", "color": shades(number % 20)}
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, label=name, **style)
        ends.append(points[0])
    whole = 100 * data["original"]["all"]["accuracy"]
    axes.axhline(whole, color="black", linewidth=0.8)
    label = f"all tokens: {whole:.1f}"
    axes.annotate(label, (35, whole), (0, 6), textcoords="offset points", ha="center")
    axes.set_xscale("log")
    ticks = [5, 10, 25, 50]
    axes.set_xticks(ticks, [f"{tick} %" for tick in ticks], minor=False)
    axes.minorticks_off()
    axes.set_xlabel("visual tokens kept, mean over the decoder's layers")
    axes.set_ylabel("held-out questions answered right, per cent")
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
