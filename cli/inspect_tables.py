"""Inspect tables: a description (``describe.py``) for people, in tables 100 columns wide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from tokopt.cli.several import link_lines

Described = Mapping[str, Any]


def tables(described: Described) -> Iterator[RenderableType]:
    """Yield the report from top to bottom; equal neighbours share a line."""
    graphs = described["graphs"]
    main = described["main"]
    others = [f"{name} ({count} nodes)" for name, count in graphs.items() if name != main]
    beside = f"; beside it: {', '.join(others)}" if others else ""
    yield Text(f"{described['source']}: {main}, {graphs[main]} nodes{beside}", style="bold")
    for line in link_lines(described["links"]):
        yield _indented(line)
    if len(described["joined"]) > 1:
        yield _indented(f"what follows is of {' and '.join(described['joined'])} as one program")
    if described["unclear"] is not None:
        yield _indented(f"not linked: {described['unclear']}")
    for size, (least, most) in described["sizes"].items():
        yield _indented(f"{size} is free: {least} to {'any' if most is None else most}")
    for title, key in (("inputs", "inputs"), ("outputs", "outputs")):
        yield Text(f"\n{title}", style="bold")
        for value in described[key]:
            yield _indented(f"{' '.join(filter(None, [value.get('name'), _type(value)]))}")
    for stack in described["stacks"]:
        yield from _stack(stack)
    if described["other_attention"]:
        yield Text("\nattention outside every stack", style="bold")
        for other in described["other_attention"]:
            rows = f"{other['queries']} queries, {other['keys']} keys"
            yield _indented(f"{rows}: {_call(other)}")
    yield _budget(described["budget"])


def _stack(stack: Described) -> Iterator[RenderableType]:
    yield Text(f"\n{stack['role']}", style="bold")
    yield _indented(f"{_rows(stack)}")
    yield _indented(f"relay: {_relay(stack['relay'])}")
    if stack["merge"] is not None:
        yield _indented(f"visual rows are merged by {_call(stack['merge'])}")
    layers = _table("layers", "attention", "heads", "width", "keys", "windows", "mask", "enters at")
    for first, last in _runs(stack["layers"], _layer_form):
        mask = "causal" if first["causal"] else "yes" if first["masked"] else "no"
        layers.add_row(
            _range(first["depth"], last["depth"]),
            first["attention"],
            str(first["heads"]),
            str(first["width"]),
            str(first["keys"]),
            str(first["windows"]),
            mask,
            first["enters"] + (" …" if first is not last else ""),
        )
    yield Padding(layers, (1, 0, 0, 2))
    sites = _table("sites", "legal", "why")
    for first, last in _runs(
        stack["sites"], lambda s: [s["legal"], s["group"], s["barrier"], s["grouped_by"]]
    ):
        name = first["name"] if first is last else f"{first['name']} … {last['name']}"
        sites.add_row(name, "yes" if first["legal"] else "no", _reason(first))
    yield Padding(sites, (1, 0, 0, 2))


def _layer_form(layer: Described) -> list[Any]:
    return [value for key, value in layer.items() if key not in ("depth", "enters")]


def _rows(stack: Described) -> str:
    rows, visual = stack["rows"], stack["visual"]
    if stack["merge"] is not None:
        return f"{rows} rows, {visual} of them visual, at places known at run time"
    if stack["protected"]:
        return f"{rows} rows: {stack['protected']} learned in front (protected), {visual} visual"
    what = "text" if stack["role"].startswith("text") else "visual"
    return f"{rows} rows, {visual} visual" if rows != visual else f"{rows} rows, all {what}"


def _relay(relay: int | None) -> str:
    if relay is None:
        return "none"
    return "the last row" if relay == -1 else f"row {relay}"


def _reason(site: Described) -> str:
    if site["barrier"] is not None:
        return f"{site['barrier']['reason']}: {_call(site['barrier'])}"
    if site["group"] == 1:
        return "any row"
    across = "x".join(map(str, site["whole"]))
    shape = f" ({across})" if len(site["whole"]) > 1 else ""
    by = site["grouped_by"]
    because = "" if by is None else f"; {by['reason']}: {_call(by)}"
    return f"only whole groups of {site['group']} rows{shape}{because}"


def _budget(budget: Described | None) -> Text:
    if budget is None:
        return Text("\nbudget: no stack carries visual tokens")
    depths = budget["layers"]
    steps = groupby(enumerate(depths), key=lambda pair: pair[1] - pair[0])
    runs = [[depth for _, depth in run] for _, run in steps]
    listed = ", ".join(_range(run[0], run[-1]) for run in runs)
    many = "layer" if len(depths) == 1 else "layers"
    text = f"{budget['visual']} visual rows in {many} {listed} of {budget['stack']}"
    return Text.assemble(("\nbudget", "bold"), f": 1.0 is {text}")


def _call(call: Described) -> str:
    module = f" in {call['module']}" if call.get("module") else ""
    line = f" at {_short(call['line'])}" if call.get("line") else ""
    return f"{call['node']} ({call['operator']}){module}{line}"


def _short(line: str) -> str:
    return line.rpartition("/")[2]


def _type(value: Described) -> str:
    shape = value["shape"]
    return value["dtype"] if shape is None else f"{value['dtype']}[{', '.join(map(str, shape))}]"


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}–{last}"


def _runs(items: Sequence[Described], form: Any) -> Iterator[tuple[Described, Described]]:
    """Yield first and last of every run of neighbours with the same form."""
    for _, run in groupby(items, key=form):
        members = list(run)
        yield members[0], members[-1]


def _indented(text: str) -> Padding:
    return Padding(Text(text), (0, 0, 0, 2))


def _table(*columns: str) -> Table:
    return Table(*columns, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
