"""Separate entered: a model of several programs: its prompt, a step behind it, whole answers."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.decode_steps import steps_of
from tokopt.cli.entered import COMPILED, FLOOR, FLOOR_PART, ORIGINAL, Contest, Placed
from tokopt.cli.one_program import output_names
from tokopt.cli.separate import Separate
from tokopt.ir.facts import analyse
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.passes.floor import floor_of
from tokopt.targets.base import Runner, Target
from tokopt.targets.chained import Chain
from tokopt.targets.generate import generate
from tokopt.targets.manifest import Manifest
from tokopt.targets.parts import named_by, part_named
from tokopt.targets.program_file import save_program
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.runtime import Artifact
from tokopt.targets.signature import Signature

Ran = Mapping[str, tuple[dict[str, Tensor], dict[str, Tensor]]]
"""What each program took and gave, by program."""


@dataclass
class SeparateEntered:
    """``given``: inputs of all programs by outer name."""

    separate: Separate
    given: Mapping[str, Tensor]
    target: Target
    artifact: Artifact
    place: Path = Path()
    opened: dict[str, Runner] = field(default_factory=dict)

    @property
    def joined(self) -> ExportedProgram:
        """All that feeds the main program, and it, as one."""
        return self.separate.joined

    @property
    def signatures(self) -> Sequence[Signature]:
        """What each program of the original takes."""
        return [one.signature for one in self.separate.original.programs]

    def own(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of the joined program."""
        return self.separate.of_joined(inputs)

    def lower(self, plan: Plan, place: Path) -> None:
        """Write the original's programs and a plan's floor of all in front, as one program."""
        self.place, floor = place, floor_of(self.joined, plan)
        graphs = dict(self.separate.program.graphs)
        stored = save_program(Program({**graphs, named_by(FLOOR_PART): floor}), place)
        with redirect_stdout(io.StringIO()):
            for one in self.separate.original.programs:
                names = [spec.name for spec in one.signature.outputs]
                self.target.lower(graphs[one.name], place, names, stored, one.part)
            self.target.lower(floor, place, output_names(floor, 0), stored, FLOOR_PART)
        parts = [one.part for one in self.separate.original.programs]
        self.opened = {part: self.target.open(place, part) for part in (*parts, FLOOR_PART)}

    def contests(self, inputs: Mapping[str, Tensor], tokens: int) -> list[Contest]:
        """Return a prompt, one step of each program behind it, and a prompt with its answer."""
        front, artifact = self.own(inputs), self.artifact
        runners = {ORIGINAL: self._original, COMPILED: artifact.runner}
        prompt = {**runners, FLOOR: self.opened[FLOOR_PART]}
        found = [Contest("prompt", {who: partial(run, front) for who, run in prompt.items()})]
        ran = self._ran(inputs)
        for name in self.separate.following:
            steps = {who: self._runner(who, name) for who in runners}
            works = {who: self._step(name, run, ran[who][name][0]) for who, run in steps.items()}
            found.append(Contest(name, works))
        how = artifact.manifest.decoding
        if how is not None and tokens:
            manifests = {ORIGINAL: self._manifest, COMPILED: artifact.manifest}
            answers = {
                who: partial(
                    generate,
                    manifests[who],
                    runners[who],
                    self._runner(who, how.program),
                    front,
                    code=partial(self._of_entry, who),
                    max_new_tokens=tokens,
                    stop=(),
                )
                for who in runners
            }
            found.append(Contest(f"prompt and {tokens} tokens", answers))
        return found

    def _step(self, name: str, run: Runner, given: Mapping[str, Tensor]) -> Callable[[], object]:
        """Return how a program behind the prompt is run once more."""
        how = self.artifact.manifest.decoding
        if how is None or how.program != name or not self.target.in_place:
            return partial(run, given)
        coded = next(one.coders for one in self.artifact.manifest.programs if one.name == name)
        if coded or not all(cache.whole for cache in how.caches):
            return partial(run, given)
        return steps_of(run, given, how)

    def placed(self, inputs: Mapping[str, Tensor]) -> dict[str, Placed]:
        """Return every program, and the floor."""
        chains = {ORIGINAL: self.separate.original, COMPILED: self._chain}
        folders, ran = {ORIGINAL: self.place, COMPILED: self.artifact.folder}, self._ran(inputs)
        found = {
            f"{who} {one.name}": Placed(folders[who], one.part, ran[who][one.name][0])
            for who, chain in chains.items()
            for one in chain.programs
        }
        return {**found, FLOOR: Placed(self.place, FLOOR_PART, self.own(inputs))}

    @property
    def _chain(self) -> Chain:
        manifest = self.artifact.manifest
        return Chain(manifest.programs, manifest.links)

    @property
    def _manifest(self) -> Manifest:
        """What would be said of the original as an artifact."""
        chain = self.separate.original
        return Manifest(
            self.target.name,
            chain.signature,
            programs=tuple(chain.programs),
            links=tuple(chain.links),
            decoding=self.separate.decoding(analyse(self.joined)),
        )

    @property
    def _original(self) -> Runner:
        return self.separate.original.runner(lambda one: self._runner(ORIGINAL, one.name))

    def _runner(self, who: str, program: str) -> Runner:
        if who == COMPILED:
            return self.artifact.program(program).runner
        return self.opened[part_named(program)]

    def _ran(self, inputs: Mapping[str, Tensor]) -> dict[str, Ran]:
        """Return what every program takes and gives in one run of all, the original's and ours."""
        chains = {ORIGINAL: self.separate.original, COMPILED: self._chain}
        return {
            who: chain.run(partial(self._of_entry, who), inputs) for who, chain in chains.items()
        }

    def _of_entry(self, who: str, entry: ProgramEntry) -> Runner:
        return self._runner(who, entry.name)
