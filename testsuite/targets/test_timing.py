from __future__ import annotations

from collections.abc import Callable

import pytest

from tokopt.targets.timing import interleaved, ratios, spread


class Clock:
    """A clock that only work moves on."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def work(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += left.pop(0)

        return run


def test_every_round_runs_each_once_and_begins_with_another() -> None:
    clock = Clock()
    works = {name: clock.work(name, 9.0, start, start + 1) for name, start in (("a", 1), ("b", 4))}
    done: list[int] = []
    found = interleaved(works, 2, warmup=1, advance=done.append, clock=lambda: clock.now)
    assert found.seconds == {"a": [1.0, 2.0], "b": [4.0, 5.0]} and found.whole
    assert clock.order == ["a", "b", "a", "b", "b", "a"] and done == [1, 2]


def test_an_interrupt_keeps_whole_rounds_and_before_the_first_is_raised() -> None:
    def stopping(at: int) -> Callable[[], None]:
        left = [at]

        def run() -> None:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt

        return run

    clock = Clock()
    works = {"a": clock.work("a", *[1.0] * 9), "b": stopping(2)}
    found = interleaved(works, 5, warmup=0, clock=lambda: clock.now)
    assert found.seconds == {"a": [1.0] * 2, "b": [0.0] * 2} and not found.whole
    with pytest.raises(KeyboardInterrupt):
        interleaved({"b": stopping(0)}, 5, warmup=0)


def test_ratios_are_taken_round_by_round() -> None:
    found = ratios([2.0, 30.0, 8.0], [1.0, 10.0, 2.0])
    assert (found.least, found.low, found.median, found.high) == (2.0, 2.5, 3.0, 3.5)
    assert spread([7.0]).median == 7.0 and spread([7.0]).count == 1
