"""Timing: several pieces of work timed in turn, so that what slows the machine slows all alike.

A round runs every piece once, beginning with another one each time; a machine that drifts between
rounds does not drift inside one, so pieces are compared pair by pair.  ctrl-C ends the measuring,
not what was measured: whole rounds are kept.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Rounds:
    """``seconds`` of each piece of work, by name, round by round; ``whole``: none was cut short."""

    seconds: Mapping[str, list[float]]
    whole: bool


@dataclass(frozen=True)
class Spread:
    """The least of some numbers, their quartiles, and how many they are."""

    least: float
    low: float
    median: float
    high: float
    count: int


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    warmup: int = 3,
    advance: Callable[[int], None] = lambda done: None,
    clock: Callable[[], float] = time.perf_counter,
) -> Rounds:
    """Run every piece ``warmup`` times unmeasured and then, in turn, ``rounds`` times.

    ``advance`` is told how many rounds are done.  ``KeyboardInterrupt`` before the first whole
    round is raised on.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    names = list(works)
    for _ in range(warmup):
        for work in works.values():
            work()
            _finish()
    for number in range(rounds):
        turn = number % max(1, len(names))
        once = dict[str, float]()
        try:
            for name in names[turn:] + names[:turn]:
                start = clock()
                works[name]()
                _finish()
                once[name] = clock() - start
        except KeyboardInterrupt:
            if number == 0:
                raise
            return Rounds(seconds, whole=False)
        for name, taken in once.items():
            seconds[name].append(taken)
        advance(number + 1)
    return Rounds(seconds, whole=True)


def _finish() -> None:
    """Wait for what still runs on a GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(numbers: Sequence[float]) -> Spread:
    """Return the spread of at least one number."""
    if len(numbers) == 1:
        return Spread(numbers[0], numbers[0], numbers[0], numbers[0], 1)
    low, median, high = statistics.quantiles(numbers, n=4, method="inclusive")
    return Spread(min(numbers), low, median, high, len(numbers))


def ratios(above: Sequence[float], below: Sequence[float]) -> Spread:
    """Return the spread of the ratio, round by round."""
    return spread([a / b for a, b in zip(above, below, strict=True)])
