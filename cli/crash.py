"""Crash: what is written beside the user when tokopt itself is at fault, for a report."""

from __future__ import annotations

import itertools
import json
import shlex
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

from tokopt.cli.versions import versions


def write_crash(error: BaseException, argv: Sequence[str]) -> Path | None:
    """Write ``tokopt-crash-<n>/`` into the current directory, or a temporary one.

    Holds ``argv.txt`` (the command), ``versions.json``, ``traceback.txt``, and ``pipeline.txt``
    where a pass was at fault.  Returns the folder, None where nothing can be written.
    """
    for parent in (Path.cwd(), Path(tempfile.gettempdir())):
        try:
            folder = _fresh(parent)
            (folder / "argv.txt").write_text(shlex.join(["tokopt", *argv]) + "\n")
            (folder / "versions.json").write_text(json.dumps(versions(), indent=2) + "\n")
            (folder / "traceback.txt").write_text("".join(traceback.format_exception(error)))
            if (pipeline := getattr(error, "pipeline", None)) is not None:
                (folder / "pipeline.txt").write_text(f"{pipeline}\n")
        except OSError:
            continue
        return folder
    return None


def _fresh(parent: Path) -> Path:
    for number in itertools.count(1):
        folder = parent / f"tokopt-crash-{number}"
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise AssertionError("itertools.count ended")
