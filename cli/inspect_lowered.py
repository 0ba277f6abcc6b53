"""Inspect lowered: which regions of an artifact's models its runtime runs as one operator each."""

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
from tokopt.targets.lowerings.onnxruntime import OnnxRuntime
from tokopt.targets.manifest import read_manifest
from tokopt.targets.onnx.fusions import KINDS
from tokopt.targets.registry import find

SHOWN = 4
"""Names of nodes that a line has; ``--json`` has all of them."""


def describe_lowered(path: str) -> dict[str, Any]:
    """Return ``target`` and ``models``: file name → regions, as data.

    Every region has ``kind``, ``operator``, ``node``, ``fused`` and ``why`` (empty where fused).
    ``InputError`` where ``path`` is no artifact, ``UnsupportedError`` where its target's runtime
    does not say what it runs, or does not start here.
    """
    folder = Path(path)
    manifest = read_manifest(folder)
    target = find(manifest.target)
    if not isinstance(target, OnnxRuntime):
        raise UnsupportedError(
            f"what {manifest.target} runs is not listed", expected="an artifact for ONNX Runtime"
        )
    files = sorted(file for file in manifest.files if file.endswith(".onnx"))
    models = {file: [vars(one) for one in target.regions(folder / file)] for file in files}
    return {"target": target.name, "models": models}


def lowered_tables(described: Mapping[str, Any]) -> Iterator[RenderableType]:
    """Yield a table per model: of each kind how many are which operator, and why others are not."""
    for file, regions in described["models"].items():
        yield Text(f"{file} as {described['target']} runs it", style="bold")
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
        yield table


def _counted(regions: list[dict[str, Any]]) -> Counter[tuple[bool, str, str]]:
    """Count by (fused, operator, why); the mark of what is written out says nothing."""
    return Counter((r["fused"], r["operator"] if r["fused"] else "", r["why"]) for r in regions)
