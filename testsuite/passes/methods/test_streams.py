"""stc and vla_pruner, call after call, against numpy that carries the state itself.  1 s."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.streams import StcStream, VlaStream
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.places import Places
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.registry import METHODS

CALLS = 4


def kept_rows(name: str, taps: Taps) -> Tensor:
    scores = METHODS[name].score(taps).masked_fill(~taps.candidates, -torch.inf)
    order = torch.sort(scores, dim=1, descending=True, stable=True)[1]
    return order[:, : taps.keep].sort(1)[0]


def following(name: str, taps: Taps, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    own = dataclasses.replace(taps, state=state)
    stay, method = kept_rows(name, own), METHODS[name]
    assert method.remember is not None
    return stay, dict(method.remember(own, stay))


def of_frames(taps: Taps, frames: int) -> Taps:
    """The candidates dealt to frames of equal size, in order; the last of each item has none."""
    number = taps.candidates.long().cumsum(1) - 1
    size = (taps.count - 1) // frames
    tile = torch.where(taps.candidates & (number < size * frames), number // size, -1)
    zero = torch.where(tile >= 0, 0, -1)
    return dataclasses.replace(taps, places=Places(tile, zero, zero, (frames, 1, size)))


@pytest.mark.parametrize(("keep", "frames"), [(4, 2), (5, 3), (7, 3)])
def test_stc_keeps_the_newest_of_every_frame_call_after_call(keep: int, frames: int) -> None:
    streams = [StcStream(frames, keep) for _ in range(2)]
    state: dict[str, Tensor] = {}
    for call in range(CALLS):
        taps = drawn_taps("decoder", rows=24, keep=keep, seed=call)
        common = torch.arange(taps.hidden.shape[-1]) * 0.4  # so that the memory matters
        taps = of_frames(dataclasses.replace(taps, hidden=taps.hidden + common), frames)
        stay, state = following("stc", taps, state)
        assert taps.places is not None
        for item, stream in enumerate(streams):
            rows = torch.arange(24)[taps.candidates[item]]
            hidden = taps.hidden[item, rows].numpy()
            chosen = stream(hidden, taps.places.tile[item, rows].numpy())
            assert rows[chosen].tolist() == stay[item].tolist(), (call, item)
            found = state["mean"][item].numpy()
            np.testing.assert_allclose(found, np.mean(stream.means, axis=0), atol=1e-6)
        assert state["count"].tolist() == [[call + 1]] * 2


def test_what_stc_saw_before_changes_what_it_keeps() -> None:
    taps = of_frames(drawn_taps("decoder", rows=24, keep=6, seed=1), 2)
    first, state = following("stc", taps, {})
    away = {"mean": -5 * state["mean"], "count": state["count"] * 50}
    assert following("stc", taps, away)[0].tolist() != first.tolist()


@pytest.mark.parametrize("keep", [3, 5])
def test_vla_pruner_spreads_what_mattered_now_and_to_the_last_three_steps(keep: int) -> None:
    streams = [VlaStream(keep) for _ in range(2)]
    count = drawn_taps("decoder", rows=24).count
    state = {"history": torch.zeros(2, 3, count)}
    unions = set()
    for call in range(CALLS + 1):
        taps = drawn_taps("decoder", rows=24, keep=keep, seed=call)
        stay, state = following("vla_pruner", taps, state)
        layer = taps.layers[-1]
        for item, stream in enumerate(streams):
            whole = np.stack([layer.row(q)[item].numpy() for q in range(24)], axis=1)
            assert taps.entry is not None
            visual = np.flatnonzero(taps.candidates[item].numpy())
            chosen = stream(whole, taps.entry[item].numpy(), visual)
            assert chosen == stay[item].tolist(), (call, item)
            kept = state["history"][item, -1].numpy()
            np.testing.assert_allclose(kept, stream.steps[-1], rtol=1e-5)
        unions.add(tuple(stay[0].tolist()))
    assert len(unions) > 1


def test_a_step_counts_less_the_longer_ago_it_was() -> None:
    taps = drawn_taps("decoder", rows=24, keep=2, seed=3)
    history = torch.zeros(2, 3, taps.count)
    history[:, 2, 0], history[:, 2, 1] = 1.0, 0.9
    history[:, 0, 2], history[:, 0, 3] = 1.2, 1.1  # oldest: times 0.8 ** 3
    with_both = kept_rows("vla_pruner", dataclasses.replace(taps, state={"history": history}))
    recent = history.clone()
    recent[:, 0] = 0
    with_recent = kept_rows("vla_pruner", dataclasses.replace(taps, state={"history": recent}))
    assert torch.equal(with_both, with_recent)
    flipped = dataclasses.replace(taps, state={"history": history.flip(1)})
    assert not torch.equal(kept_rows("vla_pruner", flipped), with_both)


def test_groups_are_refused_by_vla_pruner() -> None:
    with pytest.raises(UnsupportedError, match="single rows"):
        kept_rows("vla_pruner", dataclasses.replace(drawn_taps("decoder"), group=2))
