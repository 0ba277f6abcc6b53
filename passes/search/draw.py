"""Draw: a trial that chooses at random, or keeps what another one chose as far as it fits."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

Choices = dict[str, Any]


class Draw:
    """A trial for ``Space.draw``; ``choices`` is what it chose, which Optuna can be given."""

    def __init__(self, chance: random.Random, given: Mapping[str, Any] | None = None) -> None:
        self.chance, self.given = chance, given or {}
        self.choices: Choices = {}

    def suggest_int(self, name: str, low: int, high: int) -> int:
        """Return the given number, or one of ``low .. high``."""
        return self._kept(name, self.given.get(name, self.chance.randint(low, high)))

    def suggest_float(self, name: str, low: float, high: float, *, log: bool) -> float:
        """Return the given number, or one between; even in its logarithm."""
        drawn = math.exp(self.chance.uniform(math.log(low), math.log(high)))
        return self._kept(name, self.given.get(name, drawn))

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Return what is given where it is a choice, or one of them."""
        drawn = self.chance.choice(choices)
        given = self.given.get(name, drawn)
        return self._kept(name, given if given in choices else drawn)

    def _kept(self, name: str, value: Any) -> Any:
        self.choices[name] = value
        return value


def changed(choices: Mapping[str, Any], chance: random.Random) -> Choices:
    """Return choices with one or two of them left open."""
    left = dict(choices)
    for name in chance.sample(sorted(left), min(len(left), chance.randint(1, 2))):
        del left[name]
    return left
