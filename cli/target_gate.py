"""Target gate: what a target computes, against the rewritten program and the oracle.

Kept rows first: where a target's rounding ranks a near-tie the other way, its outputs are judged
against the oracle forced to the rows the target kept; else against the rewritten program.  Without
the original there is no oracle, and other rows than the rewritten program's fail the gate.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.tolerances import ORACLE, TIE, coarsest
from tokopt.passes.budget_report import taken
from tokopt.passes.oracle.oracle import run_oracle
from tokopt.passes.reference import with_reference
from tokopt.passes.validate import (
    Checked,
    Verdict,
    alive_rows,
    for_oracle,
    judge,
    relative_difference,
    run_program,
)
from tokopt.targets.base import Runner, Target
from tokopt.targets.calling import on_host
from tokopt.targets.parts import FIRST
from tokopt.targets.runtime import TRACE


def against_target(
    target: Target,
    folder: Path,
    checked: Checked | None,
    lowered: ExportedProgram,
    inputs: Mapping[str, Tensor],
    names: Sequence[str],
    part: str = FIRST,
) -> Iterator[Verdict]:
    """Yield the verdicts on what a target computes from the files it wrote."""
    runner = target.open(folder, part)
    yield from against_runner(target.name, runner, checked, lowered, inputs, names)


def against_runner(
    who: str,
    runner: Runner,
    checked: Checked | None,
    lowered: ExportedProgram,
    inputs: Mapping[str, Tensor],
    names: Sequence[str],
) -> Iterator[Verdict]:
    """Yield the verdicts on what someone computes, against a program and the oracle."""
    if checked is not None:
        whole = with_reference(checked.facts, checked.plan, checked.applied, inputs)
        inputs = taken(checked.applied, whole)
    got = on_host(runner)(inputs)
    wanted = dict(zip(names, run_program(lowered, inputs), strict=True))
    compared = f"{who} with the rewritten program, the same rows kept"
    other = [n for n in names if n not in got or got[n].shape != wanted[n].shape]
    if other:
        message = f"the output {other[0]!r} is missing or of another shape"
        yield Verdict("target", False, compared, message=message)
        return
    kept = [name for name in names if name.startswith(TRACE) and name.endswith(".kept")]
    outputs = [name for name in names if not name.startswith(TRACE)]
    allowed = max(ORACLE, coarsest(lowered))
    if all(bool((wanted[name] == got[name]).all()) for name in kept):
        worst = max(relative_difference(wanted[name], got[name]) for name in outputs)
        message = "" if worst <= allowed else f"the outputs differ by {worst:.3g}"
        yield Verdict("target", worst <= allowed, compared, worst, allowed, message)
        return
    if checked is None:
        message = "other rows are kept; whether that is a near-tie only the original can tell"
        yield Verdict("target", False, compared, message=f"{message} (--against)")
        return
    inputs = for_oracle(checked, inputs)
    free = run_oracle(checked.facts, checked.plan, inputs, checked.methods)
    alive = [alive_rows(got[n], c.alive) for n, c in zip(kept, free.stages, strict=True)]
    found = [got[n] for n in outputs][: len(free.outputs)]  # a reference gives more
    tie = TIE if allowed <= ORACLE else allowed
    for verdict in judge(checked, inputs, found, alive, free, who, allowed, tie):
        yield replace(verdict, gate=f"target {verdict.gate}")
