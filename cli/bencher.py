"""Bencher: how long an artifact takes, beside the original and beside its token floor.

All three run on the artifact's target, in this process, in turn: every round runs each once, so
what slows the machine slows all alike, and ratios are taken round by round.

``original``  the archive as it is
``compiled``  the artifact
``floor``     the original fed only the rows that stay, without any selector (``passes/floor.py``)

``compiled / floor`` is what selection costs; no compiler could make it less than 1.  Of a model of
several programs the floor is one program, all in front of decode; behind it nothing selects.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from safetensors.torch import save_file
from torch import Tensor

from tokopt.cli.clock import Clock
from tokopt.cli.console import track
from tokopt.cli.entered import COMPILED, FLOOR, ORIGINAL, Contest, Entered, Placed
from tokopt.cli.eval_batch import batch_size
from tokopt.cli.inputs import check_merges, inputs_for
from tokopt.cli.one_entered import OneEntered
from tokopt.cli.peak_memory import Memory, measure
from tokopt.cli.separate import Separate
from tokopt.cli.separate_entered import SeparateEntered
from tokopt.cli.verifier import open_target, original_of
from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.plan import Plan
from tokopt.ir.program import MAIN_NAMES, Program
from tokopt.passes.apply_plan import Applied, apply_plan
from tokopt.passes.methods.registry import find_method
from tokopt.passes.normalize import normalize
from tokopt.passes.select import read_plan_text
from tokopt.passes.stage_alone import stage_alone
from tokopt.targets.artifact import PLAN
from tokopt.targets.base import Target
from tokopt.targets.parts import of_part
from tokopt.targets.program_file import save_program
from tokopt.targets.runtime import Artifact, load
from tokopt.targets.timing import Spread, interleaved, ratios, spread


@dataclass(frozen=True)
class Timed:
    """``what`` at one batch size: seconds by who ran, ratios round by round, each stage alone.

    ``speedup`` is original / compiled; where there is a floor, ``possible`` is original / floor
    and ``overhead`` compiled / floor.  ``stages``: seconds, by the stage as the plan says it.
    """

    what: str
    batch: int
    seconds: Mapping[str, Spread]
    speedup: Spread
    possible: Spread | None
    overhead: Spread | None
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
    tokens: int = 16,
    stages: bool = True,
    memory: bool = True,
    target: str | None = None,
    quiet: bool = True,
) -> Benchmark:
    """Time an artifact beside the archive it was made from and beside its token floor.

    ``inputs`` (the archive's own where none are given) are run as they are, and for each of
    ``batches`` with their items repeated to so many; ``budget`` is one of several.  Where the
    artifact generates, a prompt with an answer of ``tokens`` tokens is timed too (0: none).  Raises
    ``InputError`` for another archive than the manifest's and a batch that a program does not
    take, ``UnsupportedError`` for artifacts with prompt buckets.
    """
    if rounds < 1 or tokens < 0:
        raise InputError(f"{rounds} rounds, {tokens} tokens", expected="at least 1, at least 0")
    folder, clock = Path(folder), Clock(quiet)
    artifact = load(folder, target=target)
    _refuse_buckets(artifact, folder)
    every = artifact.manifest.parts
    artifact = artifact if budget is None else artifact.at(budget)
    part = next(part for part, own in every.items() if own == artifact.manifest)
    chosen = open_target(target or artifact.manifest.target, folder)
    program = original_of(artifact.manifest, against)
    with torch.no_grad(), TemporaryDirectory(prefix="tokopt-") as temporary:
        place = Path(temporary)
        with clock.stage("the original and its floor"):
            entered = _entered(program, inputs, chosen, artifact, part)
            check_merges(entered.own(entered.given), artifact.manifest.placeholders, inputs)
            file = folder / of_part(PLAN, part)
            plan = Plan.from_toml(read_plan_text(str(file)), str(file))
            applied = apply_plan(entered.joined, plan, find_method)
            entered.lower(plan, place)
        whole, timed = True, []
        for sized in _batches(entered, batches):
            own = entered.own(sized)
            alone = _stages(chosen, plan, applied, own, place, clock) if stages else {}
            for contest in entered.contests(sized, tokens):
                of_stages = alone if contest.works.keys() >= {FLOOR} else {}
                batch = len(next(iter(own.values())))
                one, whole = _timed(contest, batch, of_stages, rounds, quiet)
                timed.append(one)
                if not whole:
                    break
            if not whole:
                break
        needed: dict[str, Memory] = {}
        if memory and whole:
            with clock.stage("memory"):
                needed = _memory(chosen, entered.placed(entered.given), place)
    return Benchmark(chosen.name, torch.get_num_threads(), plan, tuple(timed), needed, whole)


def _refuse_buckets(artifact: Artifact, folder: Path) -> None:
    if artifact.manifest.padding is not None:
        raise UnsupportedError(
            "the artifact has prompt buckets: there is no one program to time",
            where=str(folder),
            hint="compile without --prompt-buckets",
        )


def _entered(
    program: Program,
    inputs: str | Path | Mapping[str, Tensor] | None,
    target: Target,
    artifact: Artifact,
    part: str,
) -> Entered:
    if artifact.manifest.programs:
        separate = Separate.of(program)
        return SeparateEntered(separate, separate.inputs(inputs), target, artifact)
    given = inputs_for(program.main, inputs)
    normal = normalize(program.main)
    return OneEntered(normal, given, target, artifact, part)


def _batches(entered: Entered, batches: Sequence[int]) -> list[dict[str, Tensor]]:
    """Return the inputs at each batch size: their items, repeated."""
    given = entered.given
    if not batches:
        return [dict(given)]
    found = []
    for batch in batches:
        if any(batch_size(signature, batch) != batch for signature in entered.signatures):
            raise InputError(
                f"the program does not take a batch of {batch}",
                expected="a size of dim 0 it was exported for; see `tokopt inspect`",
            )
        items = {name: torch.arange(batch) % len(value) for name, value in given.items()}
        found.append({name: value[items[name]].contiguous() for name, value in given.items()})
    return found


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
            works[f"{stage.method} at {stage.site}"] = partial(target.open(home), values)
    return works


def _timed(
    contest: Contest,
    batch: int,
    stages: Mapping[str, Callable[[], object]],
    rounds: int,
    quiet: bool,
) -> tuple[Timed, bool]:
    every = {**contest.works, **stages}
    if quiet:
        found = interleaved(every, rounds)
    else:
        with track(f"{contest.what}, batch {batch}", rounds) as advance:
            found = interleaved(every, rounds, advance=lambda done: advance(done, ""))
    taken = found.seconds
    floor = taken.get(FLOOR)
    return Timed(
        contest.what,
        batch,
        {name: spread(taken[name]) for name in contest.works},
        ratios(taken[ORIGINAL], taken[COMPILED]),
        None if floor is None else ratios(taken[ORIGINAL], floor),
        None if floor is None else ratios(taken[COMPILED], floor),
        {name: spread(taken[name]) for name in stages},
    ), found.whole


def _memory(target: Target, programs: Mapping[str, Placed], place: Path) -> dict[str, Memory]:
    """Return what each program needs in a process of its own."""
    found = {}
    for who, one in programs.items():
        file = place / "inputs.safetensors"
        save_file({name: value.contiguous() for name, value in one.inputs.items()}, str(file))
        found[who] = measure(target.name, one.folder, one.part, file, torch.get_num_threads())
    return found
