"""Effort: how long a search goes on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Effort:
    """``trials``: plans judged exactly besides the published; ``draws``: plans screened a round.

    ``fresh``: sites and methods a round may score for the first time.
    """

    trials: int
    draws: int
    fresh: int

    def with_trials(self, trials: int | None) -> Effort:
        """Return the same with another number of trials, where one is given."""
        return self if trials is None else replace(self, trials=trials)


EFFORTS: Mapping[str, Effort] = {
    "quick": Effort(24, 200, 2),
    "default": Effort(96, 500, 4),
    "thorough": Effort(384, 2000, 16),
}
