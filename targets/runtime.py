"""Run an artifact: ``load(folder)`` gives a function from named inputs to named outputs."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from torch import Tensor

from tokopt.ir.errors import GateError, InputError, UnsupportedError
from tokopt.ir.memory import Memory, next_call, with_memory
from tokopt.targets.base import Runner, Target
from tokopt.targets.chained import Chain, manifest_of, signature_for
from tokopt.targets.generate import Streamer, decoding_of, generate
from tokopt.targets.hashing import check_files
from tokopt.targets.input_check import checked_inputs
from tokopt.targets.long_caches import LongCaches
from tokopt.targets.manifest import OK, Manifest, read_manifest
from tokopt.targets.parts import FIRST, bucket_part
from tokopt.targets.placeholder_check import check_placeholders
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.registry import find
from tokopt.targets.sampling import GREEDY, Sampling

TRACE = "trace."
"""Outputs whose names start so are the selection trace: kept indices and scores per stage."""


@dataclass(frozen=True)
class Artifact:
    """A loaded artifact; call it with inputs by name.

    What its stages keep from one call to the next is in ``remembered``, by the names of the inputs
    through which it comes back; empty before the first call.  Programs of several budgets that keep
    the same go on with one another's: a stream may change its budget.  ``streams`` are all there
    are, by what is kept.
    """

    folder: Path
    manifest: Manifest
    runner: Runner
    budgets: Mapping[float, Callable[[], Artifact]] = field(default_factory=dict)
    programs: Mapping[str, Callable[[], Artifact]] = field(default_factory=dict)
    remembered: dict[str, Tensor] = field(default_factory=dict)
    streams: Mapping[tuple[Memory, ...], dict[str, Tensor]] = field(default_factory=dict)

    def reset(self) -> None:
        """Forget all earlier calls, at whichever budget: the next one is a first one."""
        for remembered in (self.remembered, *self.streams.values()):
            remembered.clear()

    def program(self, name: str) -> Artifact:
        """Return one of the programs of a model that came as several, to be run alone.

        Opened when first asked for.  ``InputError`` names the programs there are.
        """
        if name not in self.programs:
            raise InputError(
                f"the artifact has no program {name!r}",
                where=str(self.folder),
                expected=" or ".join(self.programs) or "none: the model came as one program",
            )
        return self.programs[name]()

    def at(self, budget: float) -> Artifact:
        """Return the artifact's program of one of the budgets it was compiled for.

        Opened when first asked for.  ``InputError`` names the budgets there are.
        """
        if budget not in self.budgets:
            raise InputError(
                f"the artifact holds no program for the budget {budget:g}",
                where=str(self.folder),
                expected=" or ".join(f"{b:g}" for b in self.budgets) or "none: it was given a plan",
                hint="tokopt compile --budget 0.25,0.1 puts several into one artifact",
            )
        return self.budgets[budget]()

    def __call__(
        self,
        inputs: Mapping[str, object] | None = None,
        /,
        *,
        trace: bool = False,
        budget: float | None = None,
        **named: object,
    ) -> dict[str, Tensor]:
        """Run on ``inputs`` (a mapping) or on keyword arguments; tensors or numpy arrays.

        ``budget`` picks one of several that the artifact was compiled for; the first without it.
        Several programs run one after the other; one behind the main one (decode) only where an
        input of its own is given.

        What the stages keep is handed from call to call (``reset`` ends a stream); given as an
        input, it holds instead.

        Returns the outputs by name, on the CPU; those of the selection trace, and what is kept,
        only with ``trace=True``.  ``InputError`` says which input does not fit, or
        which item has another number of image placeholders than the program has visual rows.
        """
        if budget is not None:
            return self.at(budget)({**(inputs or {}), **named}, trace=trace)
        outputs = self.on_device({**(inputs or {}), **named})
        hidden = {one.output for one in self.manifest.memory}
        return {
            name: value.cpu()
            for name, value in outputs.items()
            if trace or not (name.startswith(TRACE) or name in hidden)
        }

    def on_device(self, given: Mapping[str, object]) -> dict[str, Tensor]:
        """Run once; return every output where it was computed, to be given again without a copy.

        Raises what a call does.
        """
        memory = self.manifest.memory
        given = with_memory(memory, {**self.remembered, **given}) if memory else given
        inputs = checked_inputs(given, signature_for(self.manifest, given))
        padding = self.manifest.padding
        padded = inputs if padding is None else padding.padded(inputs, padding.bucket(inputs))
        check_placeholders(padded, self.manifest.placeholders)
        outputs = self.runner(inputs)
        self.remembered.update(next_call(memory, outputs))
        return outputs

    def generate(
        self,
        inputs: Mapping[str, object],
        *,
        max_new_tokens: int,
        stop: Collection[int] | None = None,
        position: Tensor | None = None,
        sampling: Sampling = GREEDY,
        streamer: Streamer | None = None,
    ) -> Tensor:
        """Return the tokens that continue the prompts in ``inputs`` (those of vision and prefill).

        As ``targets.generate.generate`` says.  ``InputError`` where the inputs do not fit, the
        cache would overflow or stop ids are missing or none of the model's; ``UnsupportedError``
        where the artifact has no decode program whose form is known.
        """
        decode = self.program(decoding_of(self.manifest).program)
        return generate(
            self.manifest,
            self.on_device,
            decode.on_device,
            checked_inputs(inputs, signature_for(self.manifest, ())),
            max_new_tokens=max_new_tokens,
            stop=stop,
            position=position,
            sampling=sampling,
            streamer=streamer,
            code=lambda coder: self.program(coder.name).on_device,
        )


def load(
    folder: str | Path,
    *,
    target: str | None = None,
    verify: bool = True,
    allow_failed: bool = False,
) -> Artifact:
    """Open the artifact in ``folder``.

    ``target`` runs it on another target that reads the same files (an ``onnxruntime-cuda``
    artifact on ``onnxruntime-cpu``).  ``verify=False`` skips hashing the files.

    Raises ``InputError`` for a folder that is no artifact, is damaged or of a newer tokopt,
    ``GateError`` for an artifact that failed verification unless ``allow_failed``, and
    ``UnsupportedError`` where its target is not available here.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    if manifest.status != OK and not allow_failed:
        failed = [gate.gate for gate in manifest.gates if not gate.passed]
        raise GateError(
            "this artifact failed verification: " + (", ".join(failed) or manifest.status),
            where=str(folder),
            hint="compile it again; allow_failed=True opens it for debugging",
        )
    if verify:
        check_files(folder, {**manifest.files, **manifest.run.files})
    chosen = find(target or manifest.target)
    reason = chosen.available()
    if reason is not None:
        raise UnsupportedError(
            f"the artifact's target {chosen.name} is not available here: {reason}",
            where=str(folder),
            hint="an ONNX Runtime artifact also runs with target='onnxruntime-cpu'",
        )
    return _opened(folder, manifest, chosen)


def _opened(folder: Path, manifest: Manifest, target: Target) -> Artifact:
    """Open the first budget's program now, whatever else when it is asked for, each file once."""
    budgets: dict[float, Callable[[], Artifact]] = {}
    streams: dict[tuple[Memory, ...], dict[str, Tensor]] = {}
    opened = cache(lambda part: target.open(folder, part))

    def opened_part(part: str, own: Manifest) -> Artifact:
        if own.programs:
            return _chained(folder, own, opened, budgets)
        runner = _runner(opened, part, own)
        remembered = streams.setdefault(own.memory, {})
        return Artifact(folder, own, runner, budgets, remembered=remembered, streams=streams)

    def opener(part: str, own: Manifest) -> Callable[[], Artifact]:
        return cache(lambda: opened_part(part, own))

    openers = {part: (opener(part, own), own) for part, own in manifest.parts.items()}
    for open_budget, own in openers.values():
        if (asked := own.budget.requested.get("tokens")) is not None:
            budgets[asked] = open_budget
    return openers[FIRST][0]()


def _runner(opened: Callable[[str], Runner], part: str, own: Manifest) -> Runner:
    """Open a budget's program, or those of its prompt buckets or reference when first needed."""
    padding = own.padding
    if own.refresh is not None:
        return own.refresh.runner(opened, part)
    if padding is None:
        return opened(part)
    return padding.runner(lambda bucket: opened(bucket_part(part, bucket, padding.buckets)))


def _chained(
    folder: Path,
    manifest: Manifest,
    opened: Callable[[str], Runner],
    budgets: Mapping[float, Callable[[], Artifact]],
) -> Artifact:
    """Open programs when they are first run; those behind the main one are of every budget."""

    def opener(program: ProgramEntry) -> Callable[[], Artifact]:
        own, how, sparse = manifest_of(manifest, program), manifest.decoding, manifest.sparse
        if how is None or sparse is None or how.program != program.name:
            return cache(lambda: Artifact(folder, own, opened(program.part)))
        by_length = LongCaches(how, program, sparse.rows, sparse.part, opened)
        return cache(lambda: Artifact(folder, own, by_length))

    coders = (coder for program in manifest.programs for coder in program.coders)
    programs = {program.name: opener(program) for program in (*manifest.programs, *coders)}
    chain = Chain(manifest.programs, manifest.links)
    runner = chain.runner(lambda program: programs[program.name]().runner)
    return Artifact(folder, manifest, runner, budgets, programs)
