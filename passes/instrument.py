"""Instruments: what watches a pipeline from outside: verify, print, dump, time, count.

Passes hold no such code.  An instrument sees every step before and after it runs and changes
nothing; ``default_instruments`` are those that the environment asks for.
"""

from __future__ import annotations

import difflib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tokopt.ir.errors import InternalError
from tokopt.ir.program import Program
from tokopt.ir.structure import structural_faults
from tokopt.ir.text import print_program
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.pipeline import print_pass


@dataclass(frozen=True)
class Step:
    """One pass about to run: its place in the pipeline from 0, and the program it is given."""

    index: int
    what: Pass
    program: Program


class Instrument:
    """Base: does nothing at any point."""

    def start(self, program: Program) -> None:
        """See the program a pipeline begins with."""

    def before(self, step: Step) -> None:
        """See a pass about to run."""

    def after(self, step: Step, result: PassResult) -> None:
        """See what a pass returned."""


class Verify(Instrument):
    """Check every graph's structure after every pass that changed the program."""

    def after(self, step: Step, result: PassResult) -> None:
        """Raise ``InternalError`` with the first fault; the others are listed."""
        faults = [
            f"graph {name}: {fault}"
            for name, exported in (result.program.graphs.items() if result.modified else ())
            for fault in structural_faults(exported)
        ]
        if faults:
            raise InternalError(
                f"pass {step.what.name} left a broken graph",
                where=faults[0],
                expected="; also: ".join(["a sound graph", *faults[1:5]]),
            )


@dataclass
class Print(Instrument):
    """Write the program in print before and/or after every pass."""

    write: Callable[[str], object]
    before_all: bool = False
    after_all: bool = True
    anonymous: bool = False

    def before(self, step: Step) -> None:
        """Print what the pass is given."""
        if self.before_all:
            self._print(f"before {print_pass(step.what)}", step.program)

    def after(self, step: Step, result: PassResult) -> None:
        """Print what the pass made, or that it changed nothing."""
        if self.after_all and not result.modified:
            self.write(f"// after {print_pass(step.what)}: unchanged\n")
        elif self.after_all:
            self._print(f"after {print_pass(step.what)}", result.program)

    def _print(self, title: str, program: Program) -> None:
        self.write(f"// {title}\n{print_program(program, anonymous=self.anonymous)}")


@dataclass
class Dump(Instrument):
    """Write ``000_input.ir``, ``001_normalize.ir``, … and what each pass changed as ``.diff``."""

    directory: Path
    _last: str = ""

    def start(self, program: Program) -> None:
        """Write the input."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._last = print_program(program)
        (self.directory / "000_input.ir").write_text(self._last)

    def after(self, step: Step, result: PassResult) -> None:
        """Write the program, and its difference to the one before."""
        stem = f"{step.index + 1:03}_{step.what.name.replace('-', '_')}"
        text = print_program(result.program)
        changes = difflib.unified_diff(
            self._last.splitlines(keepends=True), text.splitlines(keepends=True), "before", "after"
        )
        (self.directory / f"{stem}.ir").write_text(text)
        (self.directory / f"{stem}.diff").write_text("".join(changes))
        self._last = text


@dataclass(frozen=True)
class Record:
    """What one pass did and how long it took, its verification not counted."""

    name: str
    text: str
    seconds: float
    modified: bool
    statistics: Mapping[str, int | float]
    remarks: tuple[str, ...]


@dataclass
class Time(Instrument):
    """Record every pass: ``records`` has one entry per pass, in order."""

    records: list[Record] = field(default_factory=list)
    _begun: float = 0.0

    def before(self, step: Step) -> None:
        """Start the clock."""
        self._begun = time.perf_counter()

    def after(self, step: Step, result: PassResult) -> None:
        """Stop the clock and keep what the pass said of itself."""
        seconds = time.perf_counter() - self._begun
        self.records.append(
            Record(
                step.what.name,
                print_pass(step.what),
                seconds,
                result.modified,
                dict(result.statistics),
                result.remarks,
            )
        )


def default_instruments(environment: Mapping[str, str] = os.environ) -> tuple[Instrument, ...]:
    """Return ``Verify``, unless ``TOKOPT_VERIFY=0``, and ``Dump`` where ``TOKOPT_DUMP`` is set."""
    chosen: list[Instrument] = []
    if environment.get("TOKOPT_VERIFY") != "0":
        chosen.append(Verify())
    if directory := environment.get("TOKOPT_DUMP"):
        chosen.append(Dump(Path(directory)))
    return tuple(chosen)
