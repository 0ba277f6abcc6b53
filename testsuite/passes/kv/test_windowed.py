"""Laws of formats that code rows in blocks: sizes are what they say, however rows arrive."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tokopt.passes.kv.format import WINDOW, State
from tokopt.passes.kv.layer import OTHER
from tokopt.passes.kv.registry import FORMATS
from tokopt.passes.kv.samples import Samples
from tokopt.passes.kv.windowed import Windowed

WINDOWED = sorted(name for name, one in FORMATS.items() if isinstance(one, Windowed))


def states(format: Windowed, side: str, prompt: int, more: int) -> State:
    drawn = torch.Generator().manual_seed(prompt)
    rows = torch.randn(2, 2, prompt + more, 64, generator=drawn)
    constants = format.calibrate(side, Samples([rows]))
    state = format.quantize(side, rows[:, :, :prompt], constants, torch.rand(2, 2, prompt))
    waiting = torch.rand(2, 2, state[WINDOW].shape[2] + more)
    return format.append(side, state, rows[:, :, prompt:], constants, waiting)


@pytest.mark.parametrize(("prompt", "more"), [(300, 0), (333, 250)])
@pytest.mark.parametrize("name", WINDOWED)
def test_counts_say_every_size_and_both_sides_have_the_same(
    name: str, prompt: int, more: int
) -> None:
    format, found = FORMATS[name], {}
    assert isinstance(format, Windowed)
    for side in OTHER:
        state = states(format, side, prompt, more)
        lengths, counts = format.lengths(side), list(format.counts)
        assert lengths.keys() | {WINDOW} == state.keys()
        matrix = np.array([[of.get(c, 0) for c in counts] for of in lengths.values()])
        sizes = np.array([state[n].shape[2] for n in lengths])
        solved = np.linalg.lstsq(matrix, sizes, rcond=None)[0]
        np.testing.assert_allclose(matrix @ solved, sizes)
        told = sum(state[n].shape[2] * each for n, each in format.counted(side).items())
        assert told + state[WINDOW].shape[2] == prompt + more
        rows = sum(n * format.counts[c] for n, c in zip(solved, counts, strict=True))
        assert round(rows) == told
        found[side] = state[WINDOW].shape[2]
        if not more:
            assert state[WINDOW].shape[2] <= format.waiting
    assert found["key"] == found["value"]
