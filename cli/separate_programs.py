"""Separate programs: a model that came as several: joined, rewritten, parted, each lowered."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.clock import Clock
from tokopt.cli.generation import refuse_stages, with_followers
from tokopt.cli.inputs import check_merges
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import Original, judge_parts, judge_target
from tokopt.ir.decoding import Decoding
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.part import Part
from tokopt.ir.placeholders import Placeholders, find_placeholders
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.passes.decompose import decompose
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.validate import Checked, Verdict
from tokopt.targets.base import Target
from tokopt.targets.chained import Chain
from tokopt.targets.manifest import Budget, GateResult, ProgramEntry, Variant
from tokopt.targets.parts import FIRST, named_by
from tokopt.targets.stored_weights import StoredWeights


@dataclass(frozen=True)
class SeparatePrograms:
    """``every``: the inputs of all programs by outer name, of which ``given`` feed the joined."""

    separate: Separate
    facts: Facts
    every: Mapping[str, Tensor]
    given: Mapping[str, Tensor]
    placeholders: tuple[Placeholders, ...]

    @staticmethod
    def of(
        program: Program, inputs: str | Path | Mapping[str, Tensor] | None, clock: Clock
    ) -> SeparatePrograms:
        """Join and analyse an archive's programs.

        ``InputError`` for inputs that do not fit them; raises what ``Separate.of`` does.
        """
        with clock.stage("normalize"):
            separate = Separate.of(program)
        every = separate.inputs(inputs)
        given = separate.of_joined(every)
        with clock.stage("analyse"):
            facts = analyse(separate.joined)
            placeholders = find_placeholders(facts)
            check_merges(given, placeholders, inputs)
            front = with_followers(facts, separate)
        return SeparatePrograms(separate, front, every, given, placeholders)

    @cached_property
    def decoding(self) -> Decoding | None:
        """How what follows makes tokens."""
        return self.separate.decoding(self.facts)

    @property
    def methods(self) -> dict[str, Method]:
        """Those that choose anew in every call: programs hand each other nothing from the last."""
        return {name: method for name, method in METHODS.items() if not method.state}

    def check(self, plan: Plan) -> None:
        """Raise ``UnsupportedError`` for a stage whose caches no later program takes."""
        refuse_stages(self.facts, plan)

    def rewritten(self, checked: Checked, part: str, native: Collection[str]) -> Parted:
        """Return a budget's programs.

        Raises ``UnsupportedError`` for a method that remembers, and for a program behind the main
        one that takes a constant number of rows that is gone.
        """
        if checked.applied.memory:
            raise UnsupportedError(
                "a method that remembers from call to call, in a model of several programs",
                expected="methods that choose anew in every call",
            )
        parts, chain = self.separate.parted(checked.applied, native, part)
        return Parted(self, part, checked, parts, chain)


@dataclass(frozen=True)
class Parted:
    """A budget's programs; those behind the main one are the first budget's own."""

    whole: SeparatePrograms
    part: str
    checked: Checked
    parts: Mapping[str, Part]
    chain: Chain

    @property
    def graphs(self) -> dict[str, ExportedProgram]:
        """Each program that is lowered, by name."""
        return {
            named_by(entry.part): decompose(self.parts[entry.name].exported)
            for entry in self._lowered
        }

    def judge(self) -> Iterator[Verdict]:
        """Yield the verdicts on the programs behind one another."""
        whole = self.whole
        yield from judge_parts(whole.separate, self.checked, self.parts, self.chain, whole.every)

    def lower(self, target: Target, draft: Path, stored: StoredWeights) -> None:
        """Write each program's files."""
        for entry in self._lowered:
            one = self.parts[entry.name]
            target.lower(one.exported, draft, one.outputs, stored, entry.part)

    def judge_target(self, target: Target, draft: Path) -> Iterator[Verdict]:
        """Yield the verdicts on each program and on all of them behind one another."""
        whole, lowered = self.whole, {n: one.exported for n, one in self.parts.items()}
        outputs = whole.separate.outer_outputs(self.chain)
        original = Original(self.checked, whole.given, outputs)
        yield from judge_target(target, draft, self.chain, lowered, whole.every, original)

    def entry(self, budget: Budget, gates: Sequence[GateResult]) -> Variant:
        """Return what the manifest says of them."""
        chain = self.chain
        return Variant(
            self.part,
            chain.signature,
            budget,
            tuple(gates),
            programs=tuple(chain.programs),
            links=tuple(chain.links),
        )

    @property
    def _lowered(self) -> list[ProgramEntry]:
        return [one for one in self.chain.programs if self.part == FIRST or not one.follows]
