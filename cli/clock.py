"""Clock: how long every stage of a compile takes, said on the way and kept."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from tokopt.cli.console import stage as shown_stage


@dataclass
class Clock:
    """Seconds per stage (several of one name together), and the lines of the log."""

    quiet: bool = False
    seconds: dict[str, float] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and show it on stderr."""
        start = time.perf_counter()
        try:
            if self.quiet:
                yield
            else:
                with shown_stage(name):
                    yield
        finally:
            took = round(time.perf_counter() - start, 3)
            self.seconds[name] = round(self.seconds.get(name, 0.0) + took, 3)
            self.lines.append(f"{name}: {took} s")
