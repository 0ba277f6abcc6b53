"""Console: results on stdout, everything that is said on the way on stderr.

On a terminal stages show a spinner and long work a bar; off a terminal, under ``CI`` and with
``TERM=dumb`` they are plain lines.  ``NO_COLOR`` is honoured (by rich).
"""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100
"""Columns of tables where no terminal says otherwise."""

SECONDS_BETWEEN_LINES = 10.0
"""Plain progress says at most one line per this many seconds."""


def say(text: str) -> None:
    """Write one line to stderr."""
    print(text, file=sys.stderr, flush=True)


def is_live() -> bool:
    """Return whether stderr is a terminal that somebody watches."""
    dumb = os.environ.get("TERM") == "dumb" or bool(os.environ.get("CI"))
    return sys.stderr.isatty() and not dumb


@contextmanager
def stage(text: str) -> Iterator[None]:
    """Show that something is being done, then one line with the seconds it took."""
    start, outcome = time.perf_counter(), "failed after"
    try:
        if is_live():
            from rich.console import Console

            with Console(stderr=True).status(text):
                yield
        else:
            yield
        outcome = "done in"
    finally:
        say(f"{text}: {outcome} {time.perf_counter() - start:.1f} s")


@contextmanager
def track(text: str, total: int) -> Iterator[Callable[[int, str], None]]:
    """Show progress through ``total`` steps: ``advance(done, note)`` says how many are done."""
    if is_live():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(text, total=total)
            yield lambda done, note: bar.update(
                task, completed=done, description=f"{text} {note}".rstrip()
            )
        return
    start = last = time.monotonic()

    def advance(done: int, note: str) -> None:
        nonlocal last
        now = time.monotonic()
        if done == total or now - last >= SECONDS_BETWEEN_LINES:
            last = now
            left = (now - start) * (total - done) / done if done else 0.0
            soon = f", about {left:.0f} s left" if done < total and left else ""
            say(f"{text}: {done}/{total}{soon} {note}".rstrip())

    yield advance


def show(*parts: RenderableType) -> None:
    """Print tables and texts to stdout: as wide as the terminal, or as ``rendered``."""
    if not sys.stdout.isatty():
        sys.stdout.write(rendered(*parts))
        return
    from rich.console import Console

    console = Console(highlight=False, markup=False)
    for part in parts:
        console.print(part)


def rendered(*parts: RenderableType) -> str:
    """Return tables and texts as plain text, ``WIDTH`` columns wide, no spaces at line ends."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(file=file, highlight=False, markup=False, width=WIDTH, color_system=None)
    for part in parts:
        console.print(part)
    return "".join(f"{line.rstrip()}\n" for line in file.getvalue().splitlines())
