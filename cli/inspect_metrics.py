"""Inspect metrics: what ``tokopt inspect --metrics`` shows of a run, as data and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokopt.passes.metrics import FACTOR, TAU, TOP, LayerMetrics, thirds

Measured = Mapping[str, Sequence[LayerMetrics]]
MEANS = ("mdi", "aei_text", "aei_visual")


def describe_metrics(measured: Measured) -> dict[str, Any]:
    """Return the metrics as plain data: per stack its layers, and means of early to late ones."""
    return {
        "sink_factor": FACTOR,
        "massive_above": TAU,
        "top_percent": list(TOP),
        "stacks": {
            role: {
                "layers": [asdict(layer) for layer in layers],
                **{name: _means(some) for name, some in thirds(layers).items()},
            }
            for role, layers in measured.items()
            if layers
        },
    }


def metrics_tables(described: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a table per stack, and what its columns mean."""
    for role, stack in described["stacks"].items():
        yield Text(f"\n{role}, measured", style="bold")
        text = stack["layers"][0]["mdi"] is not None
        columns = ["layer", *(("MDI", "AEI text", "AEI visual") if text else ()), "entropy"]
        columns += [f"top {p} %" for p in described["top_percent"]] + ["sinks", "massive"]
        table = Table(*columns, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for layer in stack["layers"]:
            shown = [layer[name] for name in MEANS] if text else []
            shares = [f"{value:.1%}" for value in layer["top"]]
            numbers = [_number(value) for value in (*shown, layer["entropy"])]
            counts = [_number(layer[name]) for name in ("sinks", "massive")]
            table.add_row(str(layer["depth"]), *numbers, *shares, *counts)
        yield Padding(table, (1, 0, 0, 2))
        if text:
            parts = (
                f"{name} {_number(stack[name]['mdi'])}" for name in ("early", "middle", "late")
            )
            yield Padding(Text(f"MDI of two layers each: {', '.join(parts)}"), (0, 0, 0, 2))
    yield Text(
        "\nMDI: attention per text row over attention per visual row, from the rows behind the "
        "image. AEI: a kind's share of attention over its share of rows. entropy, top: the "
        "relay's attention over visual rows (1: even). sinks: rows that receive more than "
        f"{described['sink_factor']:g} times the mean; massive: max|x|/RMS above "
        f"{described['massive_above']:g}. Both per item."
    )


def _means(layers: Sequence[LayerMetrics]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in MEANS:
        values = [getattr(layer, name) for layer in layers]
        known = [value for value in values if value is not None]
        found[name] = fmean(known) if known else None
    return found


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"
