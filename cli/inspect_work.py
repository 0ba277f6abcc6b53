"""Inspect work: operations and bytes of each layer, as data and as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokopt.passes.layer_work import LayerWork


def describe_work(found: Sequence[LayerWork]) -> list[dict[str, Any]]:
    """Return the work as plain data, in the order of the stacks; last what is in no layer."""
    return [asdict(one) for one in found]


def work_tables(described: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Yield the table; neighbouring layers that do as much share a line."""
    yield Text("\nwork of these inputs", style="bold")
    whole = sum(one["flops"] for one in described)
    table = Table(
        *("layers", "FLOPs each", "bytes each", "of all FLOPs"),
        box=SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
    )
    for form, run in groupby(described, lambda one: (one["role"], one["flops"], one["bytes"])):
        members, (role, flops, moved) = list(run), form
        first, last = members[0]["depth"], members[-1]["depth"]
        depths = "" if first is None else f":{first}" if first == last else f":{first}–{last}"
        share = len(members) * flops / whole if whole else 0.0
        table.add_row(f"{role}{depths}", f"{flops:,}", f"{moved:,}", f"{share:.1%}")
    yield Padding(table, (1, 0, 0, 2))
    yield Text(
        "FLOPs and bytes of products (linear, attention, convolution), each value moved once"
    )
