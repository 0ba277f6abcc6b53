"""Bencher: how long an artifact takes, beside the original and beside its token floor.

All three run on the artifact's target, in this process, in turn: every round runs each once, so
what slows the machine slows all alike, and ratios are taken round by round.

``original``  the archive as it is
``compiled``  the artifact
``floor``     the original fed only the rows that stay, without any selector (``passes/floor.py``)

``compiled / floor`` is what selection costs; no compiler could make it less than 1.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.clock import Clock
from tokopt.cli.console import track
from tokopt.cli.eval_batch import batch_size
from tokopt.cli.inputs import check_merges, inputs_for
from tokopt.cli.one_program import output_names
from tokopt.cli.peak_memory import Memory, measure
from tokopt.cli.verifier import open_target, original_of
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.memory import with_memory
from tokopt.ir.plan import Plan
from tokopt.ir.program import MAIN_NAMES, Program
from tokopt.passes.apply_plan import Applied, apply_plan
from tokopt.passes.floor import floor_of
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.select import read_plan_text
from tokopt.passes.stage_alone import stage_alone
from tokopt.targets.artifact import PLAN
from tokopt.targets.base import Runner, Target
from tokopt.targets.parts import FIRST, of_part
from tokopt.targets.program_file import program_name, save_program
from tokopt.targets.runtime import Artifact, load
from tokopt.targets.timing import Spread, interleaved, ratios, spread

ORIGINAL, COMPILED, FLOOR = "original", "compiled", "floor"
PARTS = {ORIGINAL: FIRST, FLOOR: "-floor"}
"""Where the programs that are lowered for the comparison lie in one folder."""


@dataclass(frozen=True)
class Timed:
    """One batch size: seconds of each program, ratios round by round, seconds of each stage alone.

    ``speedup`` is original / compiled, ``possible`` original / floor, ``overhead`` compiled /
    floor.  ``stages``: by the stage as the plan says it.
    """

    batch: int
    seconds: Mapping[str, Spread]
    speedup: Spread
    possible: Spread
    overhead: Spread
    stages: Mapping[str, Spread]


@dataclass(frozen=True)
class Benchmark:
    """What was measured, on which target with how many threads; ``whole``: nothing was cut short.

    ``memory``: by program, where it was asked for.
    """

    target: str
    threads: int
    plan: Plan
    timed: tuple[Timed, ...]
    memory: Mapping[str, Memory] = field(default_factory=dict)
    whole: bool = True


def bench(
    folder: str | Path,
    against: str | Path,
    *,
    inputs: str | Path | Mapping[str, Tensor] | None = None,
    budget: float | None = None,
    batches: Sequence[int] = (),
    rounds: int = 30,
    stages: bool = True,
    memory: bool = True,
    target: str | None = None,
    quiet: bool = True,
) -> Benchmark:
    """Time an artifact beside the archive it was made from and beside its token floor.

    ``inputs`` (the archive's own where none are given) are run as they are, and for each of
    ``batches`` with their items repeated to so many; ``budget`` is one of several.  Raises
    ``InputError`` for another archive than the manifest's and a batch that the program does not
    take, ``UnsupportedError`` for artifacts of several programs and with prompt buckets.
    """
    if rounds < 1:
        raise InputError(f"{rounds} rounds", expected="at least 1")
    folder, clock = Path(folder), Clock(quiet)
    artifact = load(folder, target=target)
    _refuse_several(artifact, folder)
    artifact = artifact if budget is None else artifact.at(budget)
    chosen = open_target(target or artifact.manifest.target, folder)
    program = original_of(artifact.manifest, against)
    given = inputs_for(program.main, inputs)
    check_merges(given, artifact.manifest.placeholders, inputs)
    part = next(p for p, own in artifact.manifest.parts.items() if own == artifact.manifest)
    with torch.no_grad(), TemporaryDirectory(prefix="tokopt-") as temporary:
        place = Path(temporary)
        with clock.stage("the original and its floor"):
            normal = normalize(program.main)
            file = folder / of_part(PLAN, part)
            plan = Plan.from_toml(read_plan_text(str(file)), str(file))
            applied = apply_plan(normal, plan, find_method)
            runners = _lowered(chosen, normal, floor_of(normal, plan), program.main_name, place)
        whole, timed = True, []
        for sized in _batches(given, artifact, batches):
            remembered = with_memory(artifact.manifest.memory, sized)
            works = {
                ORIGINAL: _work(runners[ORIGINAL], sized),
                COMPILED: _work(artifact.runner, remembered),
                FLOOR: _work(runners[FLOOR], sized),
            }
            alone = _stages(chosen, plan, applied, remembered, place, clock) if stages else {}
            one = _timed(len(next(iter(sized.values()))), works, alone, rounds, quiet)
            timed.append(one[0])
            whole = whole and one[1]
            if not one[1]:
                break
        needed: dict[str, Memory] = {}
        if memory and whole:
            with clock.stage("memory"):
                homes = {who: (place, own) for who, own in PARTS.items()}
                homes[COMPILED] = (folder, part)
                needed = _memory(chosen, homes, given, artifact, place)
    return Benchmark(chosen.name, torch.get_num_threads(), plan, tuple(timed), needed, whole)


def _refuse_several(artifact: Artifact, folder: Path) -> None:
    manifest = artifact.manifest
    if manifest.programs or manifest.padding is not None:
        what = "several programs" if manifest.programs else "prompt buckets"
        raise UnsupportedError(
            f"the artifact has {what}: there is no one program to time",
            where=str(folder),
            hint="compile one program without --prompt-buckets",
        )


def _lowered(
    target: Target, normal: ExportedProgram, floor: ExportedProgram, name: str, place: Path
) -> dict[str, Runner]:
    """Lower the original and its floor into one folder, over one set of weights."""
    programs = {ORIGINAL: normal, FLOOR: floor}
    graphs = {program_name(name, PARTS[who]): one for who, one in programs.items()}
    stored = save_program(Program(graphs), place)
    for who, one in programs.items():
        with redirect_stdout(io.StringIO()):
            target.lower(one, place, output_names(one, 0), stored, PARTS[who])
    return {who: target.open(place, part) for who, part in PARTS.items()}


def _batches(
    given: Mapping[str, Tensor], artifact: Artifact, batches: Sequence[int]
) -> list[dict[str, Tensor]]:
    """Return the inputs at each batch size: their items, repeated."""
    if not batches:
        return [dict(given)]
    found = []
    for batch in batches:
        if batch_size(artifact.manifest.signature, batch) != batch:
            raise InputError(
                f"the program does not take a batch of {batch}",
                expected="a size of dim 0 it was exported for; see `tokopt inspect`",
            )
        items = {name: torch.arange(batch) % len(value) for name, value in given.items()}
        found.append({name: value[items[name]].contiguous() for name, value in given.items()})
    return found


def _work(run: Runner, inputs: Mapping[str, Tensor]) -> Callable[[], object]:
    return lambda: run(inputs)


def _stages(
    target: Target,
    plan: Plan,
    applied: Applied,
    inputs: Mapping[str, Tensor],
    place: Path,
    clock: Clock,
) -> dict[str, Callable[[], object]]:
    """Lower what each stage inserted as a program of its own; return how to run each."""
    works: dict[str, Callable[[], object]] = {}
    with clock.stage("the stages alone"):
        for number, stage in enumerate(plan.stages):
            alone, values = stage_alone(applied, number, inputs)
            home = place / f"stage{number}"
            home.mkdir(exist_ok=True)
            names = [f"out{i}" for i in range(len(alone.graph_signature.user_outputs))]
            stored = save_program(Program({MAIN_NAMES[0]: alone}), home)
            with redirect_stdout(io.StringIO()):
                target.lower(alone, home, names, stored)
            works[f"{stage.method} at {stage.site}"] = _work(target.open(home), values)
    return works


def _timed(
    batch: int,
    works: Mapping[str, Callable[[], object]],
    stages: Mapping[str, Callable[[], object]],
    rounds: int,
    quiet: bool,
) -> tuple[Timed, bool]:
    every = {**works, **stages}
    if quiet:
        found = interleaved(every, rounds)
    else:
        with track(f"batch {batch}", rounds) as advance:
            found = interleaved(every, rounds, advance=lambda done: advance(done, ""))
    taken = found.seconds
    return Timed(
        batch,
        {name: spread(taken[name]) for name in works},
        ratios(taken[ORIGINAL], taken[COMPILED]),
        ratios(taken[ORIGINAL], taken[FLOOR]),
        ratios(taken[COMPILED], taken[FLOOR]),
        {name: spread(taken[name]) for name in stages},
    ), found.whole


def _memory(
    target: Target,
    homes: Mapping[str, tuple[Path, str]],
    given: Mapping[str, Tensor],
    artifact: Artifact,
    place: Path,
) -> dict[str, Memory]:
    """Return what each program needs in a process of its own."""
    found = {}
    for who, (home, part) in homes.items():
        own = with_memory(artifact.manifest.memory, given) if who == COMPILED else dict(given)
        file = place / f"{who}.safetensors"
        save_file({name: value.contiguous() for name, value in own.items()}, str(file))
        found[who] = measure(target.name, home, part, file, torch.get_num_threads())
    return found
