"""Separate programs: a model that came as several: joined, rewritten, parted, each lowered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.cache_bits import BitChoices, bit_choices
from tokopt.cli.cache_formats import measured, read
from tokopt.cli.cache_gate import Programs, judge_cache
from tokopt.cli.clock import Clock
from tokopt.cli.coded_gate import judge_coded
from tokopt.cli.generation import refuse_stages, with_followers
from tokopt.cli.inputs import check_merges
from tokopt.cli.next_token import NextToken
from tokopt.cli.normal_gate import judge_normal
from tokopt.cli.separate import Separate
from tokopt.cli.separate_gates import Original, judge_parts, judge_target, torch_runner
from tokopt.cli.stored_cache import StoredCache
from tokopt.cli.whole import Asked
from tokopt.ir.decoding import Decoding
from tokopt.ir.dialect import OPS
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.placeholders import Placeholders, find_placeholders
from tokopt.ir.plan import Plan
from tokopt.ir.program import Program
from tokopt.passes.decompose import decompose
from tokopt.passes.kv.asked import Auto
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.normalize import computes_alike
from tokopt.passes.validate import Checked, Verdict
from tokopt.targets.base import Runner, Target
from tokopt.targets.chained import Chain
from tokopt.targets.manifest import Budget, GateResult, Variant
from tokopt.targets.parts import FIRST, named_by
from tokopt.targets.programs import ProgramEntry
from tokopt.targets.stored_weights import StoredWeights

RAISED = OPS["cached_attention"].name
"""The operator that attention over a stored cache is, for targets that have it."""


@dataclass(frozen=True)
class SeparatePrograms:
    """``every``: the inputs of all programs by outer name, of which ``given`` feed the joined.

    ``bits``: the choices of which ``cache`` is one, where its bits were not said.
    """

    separate: Separate
    facts: Facts
    every: Mapping[str, Tensor]
    given: Mapping[str, Tensor]
    placeholders: tuple[Placeholders, ...]
    cache: StoredCache | None = None
    bits: BitChoices | None = None

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

    def judge_normal(self) -> Iterator[Verdict]:
        """Yield the verdicts on the normal form of each program that computes otherwise in it."""
        before, after = self.separate.archived, self.separate.program.graphs
        changed = [name for name in after if not computes_alike(after[name])]
        if changed:
            ran = self.separate.original.run(torch_runner(after), self.every)
            for name in changed:
                yield from judge_normal(before[name], after[name], ran[name][0])

    @cached_property
    def decoding(self) -> Decoding | None:
        """How what follows makes tokens."""
        return self.separate.decoding(self.facts)

    @property
    def methods(self) -> dict[str, Method]:
        """Those that choose anew in every call: programs hand each other nothing from the last."""
        return {name: method for name, method in METHODS.items() if not method.state}

    def with_cache(self, wanted: Asked, file: Path | None) -> SeparatePrograms:
        """Return the model with a stored cache: of formats, ``auto``, or as a plan and its file.

        Without a file what formats must know of rows is measured.  Raises what ``measured`` does.
        """
        ground = (self.separate, self.decoding, self.every)
        if isinstance(wanted, Auto):
            bits = bit_choices(*ground, wanted)
            return replace(self, cache=bits.caches[bits.usual], bits=bits)
        for one in () if self.bits is None else self.bits.caches:
            if one.entries == wanted:
                return replace(self, cache=one)
        if file is None or isinstance(wanted, Mapping):
            return replace(self, cache=measured(*ground, wanted))
        return replace(self, cache=read(*ground, wanted, file))

    def next_token(self, batches: Sequence[Mapping[str, Tensor]]) -> NextToken | None:
        """Return the step of decode behind prompts, where a search may choose its cache's bits."""
        if self.bits is None or self.decoding is None:
            return None
        return NextToken(self.separate, self.decoding, self.bits, batches)

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
        plain = final = Programs(parts, chain)
        if self.cache is not None:
            final = Programs(*self.cache.parted(parts, chain.links, part))
        return Parted(self, part, checked, plain, final)


@dataclass(frozen=True)
class Parted:
    """A budget's programs; those behind the main one are the first budget's own.

    ``plain`` with the cache in full, ``final`` as they are saved.
    """

    whole: SeparatePrograms
    part: str
    checked: Checked
    plain: Programs
    final: Programs

    @property
    def graphs(self) -> dict[str, ExportedProgram]:
        """Each program that is lowered, by name."""
        return {
            named_by(entry.part): decompose(self.final.parts[entry.name].exported)
            for entry in self._lowered
        }

    def judge(self) -> Iterator[Verdict]:
        """Yield the verdicts on the programs behind one another, and on the stored cache."""
        whole, plain = self.whole, self.plain
        yield from judge_parts(whole.separate, self.checked, plain.parts, plain.chain, whole.every)
        if whole.cache is not None:
            yield judge_cache(whole.cache, plain, self.final, whole.every, whole.given)
        yield from self._judge_coded("torch", self.final.runner)

    def lower(self, target: Target, draft: Path, stored: StoredWeights) -> None:
        """Write each program's files; attention over a stored cache as the target can have it."""
        parts, cache = self.final.parts, self.whole.cache
        if cache is not None and RAISED in target.native:
            decode = cache.decoding.program
            parts = {**parts, decode: cache.program(decode, self.plain.parts, raised=True)}
        for entry in self._lowered:
            one = parts[entry.name]
            target.lower(one.exported, draft, one.outputs, stored, entry.part)

    def judge_target(self, target: Target, draft: Path) -> Iterator[Verdict]:
        """Yield the verdicts on each program and on all of them behind one another."""
        whole, chain = self.whole, self.final.chain
        lowered = {name: one.exported for name, one in self.final.parts.items()}
        original = original_of(whole, self.checked, chain)
        yield from judge_target(target, draft, chain, lowered, whole.every, original)
        yield from self._judge_coded(target.name, lambda entry: target.open(draft, entry.part))

    def _judge_coded(self, who: str, opened: Callable[[ProgramEntry], Runner]) -> Iterator[Verdict]:
        """Yield the verdict on coded rows: of the first budget, as decode is."""
        if self.whole.cache is not None and self.part == FIRST:
            ground = (self.whole.cache, self.plain, self.final, self.whole.every)
            yield from judge_coded(*ground, who, opened)

    def entry(self, budget: Budget, gates: Sequence[GateResult]) -> Variant:
        """Return what the manifest says of them."""
        chain = self.final.chain
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
        programs = self.final.chain.programs
        lowered = [one for one in programs if self.part == FIRST or not one.follows]
        return [*lowered, *(coder for one in lowered for coder in one.coders)]


def original_of(whole: SeparatePrograms, checked: Checked, chain: Chain) -> Original:
    """Return what near-ties of a target are judged by."""
    outputs = whole.separate.outer_outputs(chain)
    if whole.cache is None:
        return Original(checked, whole.given, outputs)
    return Original(
        checked, whole.given, outputs, partial(whole.cache.read, chain), whole.cache.coarse
    )
