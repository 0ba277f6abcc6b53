import dataclasses

import numpy as np
import pytest
import torch
from testsuite.passes.methods.drawn_taps import drawn_taps

from tokopt.ir.errors import InputError
from tokopt.passes.methods.lexrank import METHOD
from tokopt.passes.methods.method import Setting, Taps

Options = dict[str, int | float | str]


def stationary(taps: Taps, item: int) -> np.ndarray:
    """The power method on the whole row-stochastic matrix, over candidates."""
    rows = taps.hidden[item][taps.candidates[item]].numpy().astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    alike = rows @ rows.T
    threshold = taps.options.get("threshold", "none")
    alike = np.maximum(alike, 0) if threshold == "none" else (alike >= threshold).astype(float)
    step = alike / alike.sum(1, keepdims=True)
    p = np.full(len(rows), 1 / len(rows))
    for _ in range(4000):
        p = step.T @ p
    return p


@pytest.mark.parametrize("role", ["vision", "decoder"])
@pytest.mark.parametrize("options", [{}, {"threshold": 0.03}])
@pytest.mark.parametrize("rows", [14, 150])
def test_the_score_is_the_stationary_vector(role: str, options: Options, rows: int) -> None:
    taps = drawn_taps(role, rows=rows, batch=3, options=options)
    taps = dataclasses.replace(taps, hidden=taps.hidden + 0.8)  # one component, as tokens have
    found = METHOD.score(taps)
    for item in range(3):
        inside = taps.candidates[item]
        np.testing.assert_allclose(found[item][inside].numpy(), stationary(taps, item), rtol=1e-4)
        assert float(found[item].sum()) == pytest.approx(1.0, abs=1e-5)


def test_the_one_that_stands_out_is_last_or_first() -> None:
    taps = drawn_taps(batch=1, rows=10)
    hidden = torch.ones(1, 10, 4)
    hidden[0, 6] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    taps = dataclasses.replace(taps, hidden=hidden)
    central = METHOD.score(taps)[0, 2:]
    assert int(central.argmin()) == 4 and len(central.unique()) == 2
    distinct = METHOD.score(dataclasses.replace(taps, options={"order": "distinct"}))[0, 2:]
    assert torch.equal(distinct, -central)


def test_a_hand_worked_degree() -> None:
    """Three rows at 0, 60 and 90 degrees: S = 1, 1/2, 0 and cos 30."""
    taps = drawn_taps(batch=1, rows=5)
    root = 3**0.5 / 2
    hidden = torch.tensor([[[9.0, 9], [9, 9], [2, 0], [0.5, root], [0, 7]]])
    taps = dataclasses.replace(taps, hidden=hidden)
    degrees = [1.5, 1.5 + root, 1 + root]
    expected = [0, 0, *(degree / sum(degrees) for degree in degrees)]
    assert METHOD.score(taps)[0].tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("options", [{"order": "best"}, {"threshold": "high"}])
def test_unknown_settings_are_refused(options: Options) -> None:
    with pytest.raises(InputError, match="lexrank: "):
        METHOD.score(drawn_taps(options=options))


def test_it_is_placed_at_the_end_of_a_tower_or_the_entry_of_a_consumer() -> None:
    assert [p.depth for p in METHOD.schedule(Setting("vision", 12, 576, 64))] == [12]
    consumer = Setting("decoder", 32, 576, 64, consumer=True)
    assert [p.depth for p in METHOD.schedule(consumer)] == [0]
