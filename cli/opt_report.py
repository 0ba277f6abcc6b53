"""Report of ``tokopt opt``: what each pass did, as a table, a line, or JSON."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from tokopt.passes.instrument import Record

SCHEMA = 1


def as_json(records: list[Record], **facts: Any) -> str:
    """Return one JSON object: ``facts``, and ``passes`` with what each did."""
    passes = [asdict(record) for record in records]
    return json.dumps({"schema_version": SCHEMA, **facts, "passes": passes})


def outcome(record: Record) -> str:
    """Return what a pass did in a few words: ``changed; nodes removed 16``."""
    counts = ", ".join(f"{name} {count}" for name, count in record.statistics.items())
    return ("changed" if record.modified else "unchanged") + (f"; {counts}" if counts else "")


def table(records: list[Record], seconds: bool, statistics: bool) -> Table:
    """Return one row per pass, with the columns asked for."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = Table("pass", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    if seconds:
        rows.add_column("seconds", justify="right")
    if statistics:
        rows.add_column("outcome")
    for record in records:
        cells = [f"{record.seconds:.3f}"] * seconds + [outcome(record)] * statistics
        rows.add_row(record.text, *cells)
    return rows
