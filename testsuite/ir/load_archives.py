"""Small archives for the tests of loading, and ways to rewrite their members."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

Json = dict[str, Any]


class Plain(torch.nn.Module):
    """Static shapes; a keyword, a string, a buffer, a constant, a dictionary of results."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.register_buffer("shift", torch.arange(4.0))
        self.constant = torch.full((4,), 0.5)

    def forward(self, x: torch.Tensor, *, y: torch.Tensor, mode: str = "it") -> Any:
        return {"sum": self.layer(x) + y, "rest": (x * self.shift, [x - self.constant])}


class Dynamic(torch.nn.Module):
    """Dynamic batch and length; sizes that are expressions of them, and a data-dependent one."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> Any:
        batch, length, _ = x.shape
        y = self.layer(x)
        with torch.no_grad():
            total = x.cumsum(1)
        rows = x.amax((1, 2)).gt(0.5).nonzero()
        return {
            "times": torch.cat([y] * 4, 1).reshape(batch, length * 4, 4),
            "half": y[:, : length // 2],
            "minus": y[:, : length - 3],
            "max": torch.cat([x, x.new_zeros(batch, torch.sym_max(length, 7), 4)], 1),
            "mod": x.new_ones(batch * length % 5 + 2),
            "mean": x.mean(1) * length / (batch + length),
            "flat": x.reshape(-1).view(batch, -1),
            "rows": x[rows[:, 0]],
            "total": total,
        }


def plain() -> ExportedProgram:
    x, y = torch.randn(2, 4), torch.randn(4)
    return torch.export.export(Plain().eval(), (x,), {"y": y, "mode": "it"})


def dynamic() -> ExportedProgram:
    sizes = {"x": {0: Dim.DYNAMIC(min=2, max=64), 1: Dim.DYNAMIC(min=6, max=512)}}
    return torch.export.export(
        Dynamic().eval(), (torch.randn(3, 10, 4),), dynamic_shapes=sizes, strict=False
    )


def saved(program: ExportedProgram) -> bytes:
    """What ``torch.export.save`` writes; all records are below the folder ``archive/``."""
    content = io.BytesIO()
    torch.export.save(program, content)
    return content.getvalue()


def rewritten(
    content: bytes,
    json_edit: Callable[[Json], object] | None = None,
    records: dict[str, bytes | Callable[[bytes], bytes] | None] | None = None,
    method: int = zipfile.ZIP_STORED,
) -> bytes:
    """Edit ``models/model.json`` in place and replace (``None``: drop, new: add) other records."""
    edits = {f"archive/{name}": edit for name, edit in (records or {}).items()}
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(result, "w", method) as new:
        for name in old.namelist():
            data: bytes | None = old.read(name)
            if name == "archive/models/model.json" and json_edit is not None:
                description = json.loads(data or b"")
                json_edit(description)
                data = json.dumps(description).encode()
            if name in edits:
                edit = edits.pop(name)
                data = edit(data or b"") if callable(edit) else edit
            if data is not None:
                new.writestr(name, data)
        for name, edit in edits.items():
            new.writestr(name, edit if isinstance(edit, bytes) else b"")
    return result.getvalue()


def written(tmp_path: Path, content: bytes, name: str = "model.pt2") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


def renamed(old: str, new: str) -> Callable[[bytes], bytes]:
    """Replace a whole JSON string by another, wherever it stands."""
    return lambda data: data.replace(json.dumps(old).encode(), json.dumps(new).encode())
