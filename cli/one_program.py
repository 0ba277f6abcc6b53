"""One program: a model that came as one, compiled for any prompt or for a few constant lengths."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.cli.buckets import judge_padding, padding_of, pieces_of
from tokopt.cli.candidate import Piece
from tokopt.cli.clock import Clock
from tokopt.cli.inputs import check_merges, inputs_for
from tokopt.cli.normal_gate import judge_normal
from tokopt.cli.target_gate import against_target
from tokopt.cli.whole import Asked
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.placeholders import Placeholders, find_placeholders
from tokopt.ir.plan import Plan
from tokopt.ir.program import MAIN_NAMES, Program
from tokopt.passes.apply_plan import Applied
from tokopt.passes.decompose import decompose
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.normalize import normalize
from tokopt.passes.reused import AGE
from tokopt.passes.validate import Checked, Verdict, reference_of
from tokopt.targets.base import Target
from tokopt.targets.manifest import Budget, GateResult, Variant
from tokopt.targets.padding import Padding
from tokopt.targets.program_file import program_name
from tokopt.targets.refresh import Refresh, reference_part
from tokopt.targets.runtime import TRACE
from tokopt.targets.signature import signature_of
from tokopt.targets.stored_weights import StoredWeights


@dataclass(frozen=True)
class OneProgram:
    """``exported`` as it came; ``name``: its rewritten form's in ``program.pt2``."""

    exported: ExportedProgram
    name: str
    facts: Facts
    given: Mapping[str, Tensor]
    placeholders: tuple[Placeholders, ...]
    buckets: Sequence[int]
    methods: Mapping[str, Method] = field(default_factory=lambda: METHODS)
    cache: None = None
    decoding: None = None

    @staticmethod
    def of(
        program: Program,
        inputs: str | Path | Mapping[str, Tensor] | None,
        buckets: Sequence[int],
        budgets: int,
        clock: Clock,
    ) -> OneProgram:
        """Analyse an archive's program.  ``InputError`` for inputs that do not fit it."""
        given = inputs_for(program.main, inputs)
        with clock.stage("normalize"):
            normal = normalize(program.main)
        with clock.stage("analyse"):
            facts = analyse(normal)
            placeholders = find_placeholders(facts)
            check_merges(given, placeholders, inputs)
        alone = budgets * max(1, len(buckets)) == 1
        name = program.main_name if alone else MAIN_NAMES[0]
        return OneProgram(program.main, name, facts, given, placeholders, buckets)

    def judge_normal(self) -> Iterator[Verdict]:
        """Yield the verdict on the normal form."""
        yield from judge_normal(self.exported, self.facts.exported, self.given)

    def with_cache(self, wanted: Asked, file: Path | None) -> OneProgram:
        """Refuse: such a model hands no cache on."""
        raise UnsupportedError(
            "the archive has no decode program, so there is no cache to store in few bits",
            where=self.name,
            hint="export with `tokopt export --decode`",
        )

    def next_token(self, batches: Sequence[Mapping[str, Tensor]]) -> None:
        """Return that there is none."""

    def check(self, plan: Plan) -> None:
        """Accept every plan: nothing else runs on what the program gives."""

    def rewritten(self, checked: Checked, part: str, native: Collection[str]) -> Shortened:
        """Return a budget's program, or those of its prompt buckets."""
        final = decompose(checked.applied.exported, keep=native)
        names = names_of(self.exported, checked.applied)
        padding: Padding | None = None
        pieces: tuple[Piece, ...] = (Piece(part, final, self.given),)
        if self.buckets:
            asked = self.placeholders
            padding = padding_of(checked, final, names, self.buckets, asked)
            pieces = pieces_of(final, padding, part, checked, self.given, asked)
        pieces += reference_piece(self.exported, checked, part, self.given, native)
        return Shortened(self.name, part, checked, final, names, pieces, padding)


@dataclass(frozen=True)
class Shortened:
    """A budget's program ``final``; ``pieces`` are lowered: itself, or what it is in buckets."""

    name: str
    part: str
    checked: Checked
    final: ExportedProgram
    names: Sequence[str]
    pieces: Sequence[Piece]
    padding: Padding | None

    @property
    def graphs(self) -> dict[str, ExportedProgram]:
        """The pieces, by name."""
        return {program_name(self.name, one.part): decompose(one.program) for one in self.pieces}

    def judge(self) -> Iterator[Verdict]:
        """Yield the verdicts on the buckets."""
        if self.padding is not None:
            parts = (self.checked, self.final, self.names, self.padding, self.pieces)
            yield from judge_padding(*parts)

    def lower(self, target: Target, draft: Path, stored: StoredWeights) -> None:
        """Write each piece's files."""
        for piece in self.pieces:
            target.lower(piece.program, draft, piece.names or self.names, stored, piece.part)

    def judge_target(self, target: Target, draft: Path) -> Iterator[Verdict]:
        """Yield the verdicts on each piece."""
        for piece in self.pieces:
            run = (piece.program, piece.inputs, piece.names or self.names, piece.part)
            yield from against_target(target, draft, piece.checked or self.checked, *run)

    def entry(self, budget: Budget, gates: Sequence[GateResult]) -> Variant:
        """Return what the manifest says of it."""
        signature, memory = signature_of(self.final, self.names), self.checked.applied.memory
        own = (self.part, signature, budget, tuple(gates), memory, self.padding)
        return Variant(*own, refresh=self._refresh())

    def _refresh(self) -> Refresh | None:
        """Return what the manifest says of the reference, where there is one."""
        found = next((one for one in self.pieces if one.checked is not None), None)
        if found is None:
            return None
        signature = signature_of(found.program, found.names)
        return Refresh(found.part, AGE, self.checked.applied.every, signature)


def reference_piece(
    exported: ExportedProgram,
    checked: Checked,
    part: str,
    given: Mapping[str, Tensor],
    native: Collection[str] = (),
) -> tuple[Piece, ...]:
    """Return the program that computes every row, where the budget's own reuses some."""
    own = reference_of(checked)
    if own is None:
        return ()
    names, final = names_of(exported, own.applied), decompose(own.applied.exported, keep=native)
    return (Piece(reference_part(part), final, given, names=names, checked=own),)


def names_of(exported: ExportedProgram, applied: Applied) -> list[str]:
    """Return the names of a rewritten program's outputs: what is remembered is behind the trace."""
    return [*output_names(exported, len(applied.trace)), *applied.renewed]


def output_names(exported: ExportedProgram, stages: int) -> list[str]:
    """Return the original outputs' names and those of the selection trace."""
    original = [spec.name for spec in signature_of(exported).outputs]
    traced = [f"{TRACE}{i}.{what}" for i in range(stages) for what in ("kept", "scores")]
    return [*original, *traced]
