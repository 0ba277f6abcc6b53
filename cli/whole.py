"""Whole: a model as one graph to plan on, whether it came as one program or as several.

``OneProgram`` and ``SeparatePrograms`` are the two there are; a compile knows no difference between
them.  A rewritten one knows what of it is saved, lowered and judged.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.decoding import Decoding
from tokopt.ir.facts import Facts
from tokopt.ir.placeholders import Placeholders
from tokopt.ir.plan import Caching, Plan
from tokopt.passes.kv.asked import Auto
from tokopt.passes.kv.format import Side
from tokopt.passes.methods.method import Method
from tokopt.passes.validate import Checked, Verdict
from tokopt.targets.base import Target
from tokopt.targets.manifest import Budget, GateResult, Variant
from tokopt.targets.stored_weights import StoredWeights

if TYPE_CHECKING:
    from tokopt.cli.next_token import NextToken
    from tokopt.cli.stored_cache import StoredCache


Asked = Mapping[Side, str] | Sequence[Caching] | Auto
"""Formats of keys and of values, of each layer, or as few bits as will do."""


class Rewritten(Protocol):
    """The programs of one budget."""

    @property
    def graphs(self) -> Mapping[str, ExportedProgram]:
        """What ``program.pt2`` holds of them, by name, in plain aten."""

    def judge(self) -> Iterator[Verdict]:
        """Yield the verdicts in torch on what was done behind the rewrite."""

    def lower(self, target: Target, draft: Path, stored: StoredWeights) -> None:
        """Write the target's files; ``stored``: where the weights lie already."""

    def judge_target(self, target: Target, draft: Path) -> Iterator[Verdict]:
        """Yield the verdicts on what the target computes from these files."""

    def entry(self, budget: Budget, gates: Sequence[GateResult]) -> Variant:
        """Return what the manifest says of them."""


class Whole(Protocol):
    """A model that is compiled; ``facts`` are of its one graph, in normal form.

    ``given`` are inputs of this graph, by name.
    """

    def judge_normal(self) -> Iterator[Verdict]:
        """Yield the verdicts on the normal form, where it computes otherwise than the archive."""

    @property
    def facts(self) -> Facts:
        """What is known of the graph; sites that must not be used are barred."""

    @property
    def given(self) -> Mapping[str, Tensor]:
        """Inputs that gates and calibration run on."""

    @property
    def placeholders(self) -> tuple[Placeholders, ...]:
        """What inputs are asked for."""

    @property
    def cache(self) -> StoredCache | None:
        """How decode's layers store their cache, where that is not in full."""

    @property
    def decoding(self) -> Decoding | None:
        """How the next token is made, where that is known."""

    @property
    def methods(self) -> Mapping[str, Method]:
        """The methods of the library that its programs can run."""

    def with_cache(self, wanted: Asked, file: Path | None) -> Whole:
        """Return the model with a stored cache; raises ``UnsupportedError`` where it has none.

        ``wanted``: formats of keys and values, ``auto``, or what a plan has, with its ``file``.
        """

    def next_token(self, batches: Sequence[Mapping[str, Tensor]]) -> NextToken | None:
        """Return the step of decode behind prompts, where a search may choose its cache's bits."""

    def check(self, plan: Plan) -> None:
        """Raise ``UnsupportedError`` for a plan that some program could not follow."""

    def rewritten(self, checked: Checked, part: str, native: Collection[str]) -> Rewritten:
        """Return a budget's programs; the dialect is plain aten but for ``native`` operators."""
