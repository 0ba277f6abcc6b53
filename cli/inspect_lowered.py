"""Inspect lowered: where an artifact's models run, and what of them is one operator each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from tokopt.ir.errors import UnsupportedError
from tokopt.targets.launched import launched
from tokopt.targets.lowerings.aotinductor import AotInductor
from tokopt.targets.lowerings.onnxruntime import OnnxRuntime
from tokopt.targets.manifest import Manifest, read_manifest
from tokopt.targets.onnx.fusions import KINDS
from tokopt.targets.registry import find

UNTOLD = "not told by this onnxruntime; 1.24 and later do"
SHOWN = 4
"""Names of nodes that a line has; ``--json`` has all of them."""


def describe_lowered(path: str) -> dict[str, Any]:
    """Return ``target``, ``choices`` (the manifest's) and by file what runs, as data.

    ``models``, of ONNX Runtime: ``regions``, each with ``kind``, ``operator``, ``node``, ``fused``
    and ``why`` (empty where fused), and ``placed``: by provider how many of each operator.
    ``packages``, of AOTInductor: ``library`` calls by operator, and the ``kernels`` that were made.
    ``InputError`` where ``path`` is no artifact, ``UnsupportedError`` where its target's runtime
    does not say what it runs, or does not start here.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    target = find(manifest.target)
    described: dict[str, Any] = {"target": target.name, "choices": manifest.choices}
    if isinstance(target, OnnxRuntime):
        found = {file: target.runs(folder / file) for file in _files(manifest, ".onnx")}
        models = {
            file: {"regions": [vars(one) for one in runs.regions], "placed": runs.placed}
            for file, runs in found.items()
        }
        return {**described, "models": models}
    if isinstance(target, AotInductor):
        packages = {file: vars(launched(folder / file)) for file in _files(manifest, ".aoti.pt2")}
        return {**described, "packages": packages}
    raise UnsupportedError(
        f"what {manifest.target} runs is not listed",
        expected="an artifact for ONNX Runtime or AOTInductor",
    )


def _files(manifest: Manifest, ending: str) -> list[str]:
    return sorted(file for file in manifest.files if file.endswith(ending))


def lowered_tables(described: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield tables per file: what was chosen, where operators run, what is fused, and why not."""
    for file, one in described.get("models", {}).items():
        yield from _head(file, described)
        placed = {provider: _said(count) for provider, count in one["placed"].items()}
        yield _pairs("provider", "operators", placed or {UNTOLD: ""})
        yield _regions(one["regions"])
    for file, one in described.get("packages", {}).items():
        yield from _head(file, described)
        yield _pairs("library operator", "called at", one["library"])
        yield _pairs("kernels made", "", dict.fromkeys(one["kernels"], ""))


def _head(file: str, described: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield Text(f"{file} as {described['target']} runs it", style="bold")
    chosen = described["choices"].get(file, {})
    if chosen:
        yield _pairs("chosen", "", chosen)


def _pairs(first: str, second: str, rows: Mapping[str, Any]) -> Table:
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in (first, second):
        table.add_column(column, overflow="fold")
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _said(operators: Mapping[str, int]) -> str:
    most = Counter(operators).most_common()
    return ", ".join(f"{name} {count}" for name, count in most)


def _regions(regions: list[dict[str, Any]]) -> Table:
    """Return of each kind how many are which operator, and why others are not."""
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in ("region", "fused", "operator", "where it is not: why, which nodes"):
        table.add_column(column, overflow="fold")
    for kind in KINDS:
        own = [one for one in regions if one["kind"] == kind]
        total = len(own)
        if not own:
            table.add_row(kind, "none", "", "")
        for (fused, operator, why), count in _counted(own).items():
            nodes = [one["node"] for one in own if (one["fused"], one["why"]) == (fused, why)]
            more = ", …" if len(nodes) > SHOWN else ""
            note = "" if fused else f"{why}: {', '.join(nodes[:SHOWN])}{more}"
            many = f"{count} of {total}"
            table.add_row(kind, many if fused else f"not {many}", operator, note)
    return table


def _counted(regions: list[dict[str, Any]]) -> Counter[tuple[bool, str, str]]:
    """Count by (fused, operator, why); the mark of what is written out says nothing."""
    return Counter((r["fused"], r["operator"] if r["fused"] else "", r["why"]) for r in regions)
