"""Long caches: decode by the sparse program where the caches are long enough, else by the full one.

Both take and give the same, so a sequence goes from one to the other as it grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tokopt.ir.decoding import Decoding
from tokopt.targets.base import Runner
from tokopt.targets.coding import rows_of
from tokopt.targets.programs import ProgramEntry


@dataclass(frozen=True)
class LongCaches:
    """The step of decode by the mean number of ``rows`` of its caches; each part opened at need."""

    how: Decoding
    full: ProgramEntry
    rows: int
    sparse: str
    opened: Callable[[str], Runner]

    def __call__(self, step: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one step."""
        return self.opened(self.sparse if self.long(step) else self.full.part)(step)

    def long(self, step: Mapping[str, Tensor]) -> bool:
        """Whether a step's caches, with its own row, have the rows at which sparse decode pays."""
        coders = self.full.coders
        lengths = [rows_of(coders, step, one.input, one.dim) + 1 for one in self.how.caches]
        return sum(lengths) >= self.rows * len(lengths)
