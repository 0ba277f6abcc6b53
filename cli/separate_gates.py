"""Separate gates: what holds of several programs beyond what holds of them as one.

``parted``     the programs behind one another compute what the joined rewritten program does
``following``  programs behind the main one (decode) give what they would with dropped rows masked
``target``     what a target computes: each program alone, and all of them behind one another
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.separate import Separate
from tokopt.cli.target_gate import against_runner
from tokopt.ir.part import Part
from tokopt.ir.tolerances import IDENTITY, ORACLE, TIE, TOLERANCES, coarsest
from tokopt.passes.decompose import decompose
from tokopt.passes.oracle.oracle import run_oracle
from tokopt.passes.validate import (
    Checked,
    Verdict,
    alive_rows,
    is_code,
    judge,
    relative_difference,
    run_program,
    same_bytes,
)
from tokopt.targets.base import Runner, Target
from tokopt.targets.calling import on_host, runner_of
from tokopt.targets.chained import Chain
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.runtime import TRACE


@dataclass(frozen=True)
class Original:
    """What near-ties are judged by: the joined program, its inputs, its outputs' outer names.

    ``read``: makes rows of an output that is a stored cache, which differs by ``coarse`` at most.
    """

    checked: Checked
    inputs: Mapping[str, Tensor]
    outputs: Sequence[str]
    read: Callable[[str, Tensor], Tensor] = lambda name, value: value
    coarse: float = 0.0


def judge_parts(
    separate: Separate,
    checked: Checked,
    parts: Mapping[str, Part],
    chain: Chain,
    given: Mapping[str, Tensor],
) -> Iterator[Verdict]:
    """Yield the verdicts on the rewritten programs in torch."""
    own = separate.of_joined(given)
    wanted = run_program(decompose(checked.applied.exported), own)
    names = separate.outer_outputs(chain)
    names += [n for n in chain.outputs.values() if n.startswith(TRACE)]
    got = torch_run(chain, {name: one.exported for name, one in parts.items()}, given)
    compared = "the programs behind one another, with the joined rewritten program"
    yield _same("parted", compared, dict(zip(names, wanted, strict=True)), got, IDENTITY)
    followers = separate.followers()
    yield from followers.judge(checked, own, separate.of_followers(given))


def judge_target(
    target: Target,
    folder: Path,
    chain: Chain,
    lowered: Mapping[str, ExportedProgram],
    given: Mapping[str, Tensor],
    original: Original | None,
) -> Iterator[Verdict]:
    """Yield the verdicts on what a target computes from the files of the programs."""
    opened = cache(lambda part: target.open(folder, part))
    ran = chain.run(torch_runner(lowered), given)
    wanted = torch_run(chain, lowered, given)
    got = on_host(chain.runner(lambda program: opened(program.part)))(given)
    kept = [n for n in wanted if n.startswith(TRACE) and n.endswith(".kept")]
    same = all(bool((wanted[name] == got[name]).all()) for name in kept)
    for program in chain.programs:
        names = [spec.name for spec in program.signature.outputs]
        if same or not any(name.startswith(TRACE) for name in names):
            given_to, exported = ran[program.name][0], lowered[program.name]
            run = (opened(program.part), None, exported, given_to, names)
            for verdict in against_runner(target.name, *run):
                yield replace(verdict, compared=f"{program.name}: {verdict.compared}")
    allowed = max(ORACLE, *(coarsest(exported) for exported in lowered.values()))
    if any(is_code(value) and not same_bytes(value, got[n]) for n, value in wanted.items()):
        allowed = max(allowed, TOLERANCES["float16"])  # a row was rounded to the next code
    compared = f"{target.name} with the rewritten programs, all behind one another"
    if same:
        outputs = {n: v for n, v in wanted.items() if not n.startswith(TRACE)}
        yield _same("target", compared, outputs, got, allowed)
    elif original is None:
        message = "other rows are kept; whether that is a near-tie only the original can tell"
        yield Verdict("target", False, compared, message=f"{message} (--against)")
    else:
        checked, inputs = original.checked, original.inputs
        free = run_oracle(checked.facts, checked.plan, inputs, checked.methods)
        pairs = zip(kept, free.stages, strict=True)
        alive = [alive_rows(got[name], choice.alive) for name, choice in pairs]
        allowed = max(allowed, original.coarse)
        found = [original.read(name, got[name]) for name in original.outputs]
        tie = TIE if allowed <= ORACLE else allowed
        for verdict in judge(checked, inputs, found, alive, free, target.name, allowed, tie):
            yield replace(verdict, gate=f"target {verdict.gate}")


def torch_run(
    chain: Chain, graphs: Mapping[str, ExportedProgram], given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the outer outputs of programs run in torch."""
    return chain.runner(torch_runner(graphs))(given)


def torch_runner(graphs: Mapping[str, ExportedProgram]) -> Callable[[ProgramEntry], Runner]:
    """Return what runs each of some programs in torch."""
    return opened_once(partial(_in_torch, graphs))


def opened_once(opened: Callable[[ProgramEntry], Runner]) -> Callable[[ProgramEntry], Runner]:
    """Return the same for programs of different names, each opened when first asked for."""
    found: dict[str, Runner] = {}

    def get(program: ProgramEntry) -> Runner:
        if program.name not in found:
            found[program.name] = opened(program)
        return found[program.name]

    return get


def same_programs(
    chain: Chain,
    wanted: Mapping[str, ExportedProgram],
    saved: Mapping[str, ExportedProgram],
    given: Mapping[str, Tensor],
    compared: str,
) -> Verdict:
    """Return whether saved programs compute what the plan applied again does."""
    results = torch_run(chain, wanted, given)
    return _same("program", compared, results, torch_run(chain, saved, given), IDENTITY)


def _in_torch(graphs: Mapping[str, ExportedProgram], program: ProgramEntry) -> Runner:
    return runner_of(graphs[program.name], [spec.name for spec in program.signature.outputs])


def _same(
    gate: str,
    compared: str,
    wanted: Mapping[str, Tensor],
    got: Mapping[str, Tensor],
    allowed: float,
) -> Verdict:
    for name, value in wanted.items():
        if name not in got or (got[name].shape, got[name].dtype) != (value.shape, value.dtype):
            message = f"the output {name!r} is missing or of another shape"
            return Verdict(gate, False, compared, message=message)
    worst = max(relative_difference(value, got[name]) for name, value in wanted.items())
    message = "" if worst <= allowed else f"the outputs differ by {worst:.3g}"
    return Verdict(gate, worst <= allowed, compared, worst, allowed, message)
