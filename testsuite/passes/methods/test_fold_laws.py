"""Laws of every method that folds rows into others."""

import dataclasses

import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.test_laws import take
from torch import Tensor

from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.registry import METHODS
from tokopt.passes.methods.rows import top_rows

FOLDING = [
    (name, role)
    for name, method in METHODS.items()
    for role in sorted(method.roles)
    if method.combine is not None
]
ROWS = 30
every_fold = pytest.mark.parametrize(("name", "role"), FOLDING)


def chosen(name: str, taps: Taps) -> Tensor:
    """Return the rows that stay, ``[B, K]``: all that may not go, and the best of the others."""
    best = top_rows(METHODS[name].score(taps), taps.candidates, taps.keep)
    return (best | ~taps.candidates).nonzero()[:, 1].view(len(best), -1)


def combined(name: str, taps: Taps, stay: Tensor) -> Tensor:
    combine = METHODS[name].combine
    assert combine is not None
    return combine(taps, stay)


def taps_of(role: str, keep: int, **more: object) -> Taps:
    drawn = drawn_taps(role, rows=ROWS, keep=keep, **more)  # type: ignore[arg-type]
    assert drawn.candidates.sum(1).unique().numel() == 1
    return drawn


@every_fold
def test_keeping_all_folds_nothing(name: str, role: str) -> None:
    count = int(taps_of(role, 1).candidates[0].sum())
    taps = taps_of(role, count)
    every = torch.arange(ROWS).expand(2, -1)
    assert torch.equal(combined(name, taps, every), taps.hidden)


@every_fold
@pytest.mark.parametrize("keep", [1, 3, 6])
def test_text_and_protected_rows_come_out_as_they_went_in(name: str, role: str, keep: int) -> None:
    taps = taps_of(role, keep)
    stay = chosen(name, taps)
    found, before = combined(name, taps, stay), rows_at(taps.hidden, stay)
    assert found.shape == before.shape and bool(found.isfinite().all())
    other = ~taps.candidates.gather(1, stay)
    assert torch.equal(found[other], before[other])


@every_fold
def test_something_is_folded(name: str, role: str) -> None:
    taps = taps_of(role, 6)
    stay = chosen(name, taps)
    assert not torch.equal(combined(name, taps, stay), rows_at(taps.hidden, stay))


@every_fold
def test_items_of_a_batch_do_not_see_each_other(name: str, role: str) -> None:
    taps = taps_of(role, 6, batch=3)
    stay = chosen(name, taps)
    together = combined(name, taps, stay)
    for item in range(3):
        one = take(taps, item)
        alone = combined(name, one, stay[item : item + 1])
        torch.testing.assert_close(alone[0], together[item], rtol=1e-5, atol=1e-6)


@every_fold
def test_half_precision_rows_are_folded_in_full_precision(name: str, role: str) -> None:
    taps = taps_of(role, 6)
    stay = chosen(name, taps)
    halves = dataclasses.replace(taps, hidden=taps.hidden.half())
    torch.testing.assert_close(
        combined(name, halves, stay).float(), combined(name, taps, stay), rtol=2e-3, atol=2e-3
    )
