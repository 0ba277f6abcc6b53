"""PassManager: run passes in order and hold each to its contract.

After a pass it is checked that the program given was left as it was, that ``modified`` is the
truth, that what the pass ``ensures`` holds of the *result*, and that a program in normal form
stayed in it.  A breach is our bug (``PassFault``), as is a crash inside a pass; both name the pass
and those before it.  A condition that a pass ``requires`` and the program does not meet is the
pipeline's fault (``InputError``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokopt.ir.errors import InputError, InternalError, TokoptError
from tokopt.ir.program import Program
from tokopt.passes.base import Pass, PassResult
from tokopt.passes.crash import PassFault
from tokopt.passes.instrument import Instrument, Step, default_instruments
from tokopt.passes.pipeline import print_pipeline
from tokopt.passes.snapshot import Snapshot
from tokopt.passes.spec import NORMALIZED


@dataclass(frozen=True)
class PassManager:
    """A pipeline, ready to run: ``PassManager([Normalize()]).run(program)``.

    ``instruments`` watch every step, the first of them from nearest (None: those of
    ``default_instruments``).  Where ``reproducers`` names a directory, a fault of ours writes
    there what is needed to see it again.
    """

    passes: Sequence[Pass]
    instruments: Sequence[Instrument] | None = None
    reproducers: Path | None = None

    def run(self, program: Program) -> Program:
        """Return the program after all passes; the one given stays as it was.

        Raises ``PassFault`` for our bugs, ``InputError`` for an order of passes that cannot work,
        and whatever ``TokoptError`` a pass has for the user.
        """
        watching = default_instruments() if self.instruments is None else self.instruments
        for instrument in watching:
            instrument.start(program)
        current, snapshot = program, Snapshot.of(program)
        for index, step in enumerate(self.passes):
            try:
                current, snapshot = _run_step(Step(index, step, current), snapshot, watching)
            except InternalError as error:
                raise self._fault(error, index, program) from (error.__cause__ or error)
        return current

    def _fault(self, error: InternalError, index: int, program: Program) -> PassFault:
        fault = PassFault(error, program, print_pipeline(self.passes[: index + 1]))
        before = ", ".join(step.name for step in self.passes[:index])
        place = f"pass {self.passes[index].name}, {f'after {before}' if before else 'the first'}"
        fault.where = f"{place}: {error.where}" if error.where else place
        fault.__cause__ = error.__cause__ or error
        if self.reproducers is not None:
            fault.write(self.reproducers)
        return fault


def _run_step(
    step: Step, snapshot: Snapshot, watching: Sequence[Instrument]
) -> tuple[Program, Snapshot]:
    _check_requirements(step)
    was_normal = not NORMALIZED.faults(step.program)
    for instrument in reversed(watching):
        instrument.before(step)
    result = _call(step)
    for instrument in watching:
        instrument.after(step, result)
    later = Snapshot.of(result.program)
    _check_truth(step, result, snapshot, later)
    promised = dict.fromkeys((*step.what.ensures, *((NORMALIZED,) if was_normal else ())))
    for spec in promised:
        if faults := spec.faults(result.program):
            raise InternalError(
                f"pass {step.what.name} returned a program that is not {spec.name}",
                where=faults[0],
                expected=f"a {spec.name} program" + "".join(f"; also: {f}" for f in faults[1:5]),
            )
    return result.program, later


def _check_requirements(step: Step) -> None:
    for spec in step.what.requires:
        if faults := spec.faults(step.program):
            raise InputError(
                f"pass {step.what.name} needs a {spec.name} program",
                where=faults[0],
                hint=spec.hint,
            )


def _call(step: Step) -> PassResult:
    try:
        result = step.what.run(step.program)
    except TokoptError as error:
        if error.where is None and not isinstance(error, InternalError):
            error.where = f"pass {step.what.name}"
        raise
    except Exception as error:
        raise InternalError(
            f"pass {step.what.name} crashed: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(result, PassResult):
        raise InternalError(f"pass {step.what.name} returned {type(result).__name__}")
    return result


def _check_truth(step: Step, result: PassResult, before: Snapshot, after: Snapshot) -> None:
    name = step.what.name
    given = after if result.program is step.program else Snapshot.of(step.program)
    if (written := before.difference(given)) is not None:
        raise InternalError(
            f"pass {name} changed the program it was given",
            where=written,
            expected="a new program, the old one as it was",
        )
    difference = before.difference(after)
    if difference is not None and not result.modified:
        raise InternalError(
            f"pass {name} says that it changed nothing, and it did", where=difference
        )
    if difference is None and result.modified:
        raise InternalError(
            f"pass {name} says that it changed the program, and it did not",
            expected="modified=False and the same program where nothing changed",
        )
