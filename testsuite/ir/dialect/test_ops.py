"""Laws of every dialect operator, on its own samples and on the cases of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from testsuite.ir.dialect import by_hand
from testsuite.ir.dialect.cases import CASES, FP8, INF, NAN
from testsuite.ir.dialect.programs import exported, three_ways
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim

from tokopt.ir.dialect import OPS

MEANING = {
    "attention_rows": by_hand.attended,
    "cached_attention": by_hand.cached,
    "gather": by_hand.gathered,
    "restore": by_hand.restored,
    "segmented_mean": by_hand.averaged,
    "select": by_hand.selected,
}
ROUNDED = {"attention_rows": 2e-6, "cached_attention": 1e-5, "segmented_mean": 1e-6}
"""The relative error of operators that compute; the others move rows and are exact."""
EVERY = [
    *((name, f"sample {i}", s) for name in OPS for i, s in enumerate(OPS[name].samples())),
    *((name, label, case) for name in CASES for label, case in CASES[name].items()),
]
each = pytest.mark.parametrize(
    ("name", "args"), [(n, a) for n, _, a in EVERY], ids=[f"{n}: {label}" for n, label, _ in EVERY]
)


def test_every_operator_has_a_meaning_by_hand_cases_and_documentation() -> None:
    assert set(OPS) == set(MEANING) == set(CASES)
    assert all(op.doc and op.samples() for op in OPS.values())


@each
def test_an_operator_means_what_it_means_entry_by_entry(name: str, args: tuple[Any, ...]) -> None:
    assert_means(name, OPS[name].overload(*args), args)


def assert_means(name: str, got: Tensor, args: tuple[Any, ...]) -> None:
    np.testing.assert_allclose(
        got.numpy(), MEANING[name](*args), rtol=ROUNDED.get(name, 0), atol=ROUNDED.get(name, 0)
    )


@each
def test_the_shape_function_agrees_with_the_kernel(name: str, args: tuple[Any, ...]) -> None:
    real = OPS[name].overload(*args)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in args]
        fake = OPS[name].overload(*fakes)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("name", OPS)
def test_torch_finds_nothing_wrong_with_an_operator(name: str) -> None:
    for args in OPS[name].samples():
        torch.library.opcheck(OPS[name].overload, args)


@pytest.mark.parametrize("name", OPS)
def test_plain_aten_and_onnx_runtime_compute_the_same(name: str, tmp_path: Path) -> None:
    calls = [args for n, label, args in EVERY if n == name and label not in FP8]
    tensors = [a for args in calls for a in args if isinstance(a, Tensor)]

    def compute(given: list[Tensor]) -> list[Tensor]:
        left = iter(given)
        filled = [[next(left) if isinstance(a, Tensor) else a for a in args] for args in calls]
        return [OPS[name].overload(*args) for args in filled]

    for way in three_ways(exported(compute, tensors), tmp_path):
        for got, args in zip(way(tensors), calls, strict=True):
            assert_means(name, got, args)


def test_a_program_of_any_batch_computes_the_same_at_every_batch(tmp_path: Path) -> None:
    def compute(given: list[Tensor]) -> list[Tensor]:
        scores, x, turned, shared = given
        kept = OPS["select"].overload(scores, scores == scores, 3)
        some = OPS["gather"].overload(x, kept, 2, [0])
        second = OPS["gather"].overload(turned, kept, 0, [1])
        common = OPS["gather"].overload(shared, kept, 1, [0])
        whole = OPS["restore"].overload(some, kept, 6, 2, [0])
        back = OPS["restore"].overload(second, kept, 6, 0, [1])
        return [kept, some, second, common, whole, back]

    def inputs(batch: int) -> list[Tensor]:
        torch.manual_seed(batch)
        sizes = [(batch, 6), (batch, 2, 6, 4), (6, batch, 4), (1, 6, 6)]
        return [torch.randn(*size) for size in sizes]

    n = Dim("n", min=1, max=16)
    program = exported(compute, inputs(2), [{0: n}, {0: n}, {1: n}, {}])
    ways = three_ways(program, tmp_path)
    for batch in (1, 2, 5):
        scores, x, turned, shared = inputs(batch)
        kept = torch.from_numpy(by_hand.selected(scores, scores == scores, 3))
        some, second = by_hand.gathered(x, kept, 2, [0]), by_hand.gathered(turned, kept, 0, [1])
        wanted = [
            kept.numpy(),
            some,
            second,
            by_hand.gathered(shared, kept, 1, [0]),
            by_hand.restored(torch.from_numpy(some), kept, 6, 2, [0]),
            by_hand.restored(torch.from_numpy(second), kept, 6, 0, [1]),
        ]
        for way in ways:
            for got, want in zip(way([scores, x, turned, shared]), wanted, strict=True):
                np.testing.assert_array_equal(got.numpy(), want)


scores = st.sampled_from([NAN, INF, -INF, 0.0, -0.0, 1.0, 1.0 + 2**-23, -1.0, 3.4e38, -1e-45])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(scores, st.booleans()), min_size=1, max_size=12), st.data())
def test_what_is_selected_is_what_sorting_by_hand_selects(rows, data) -> None:  # type: ignore[no-untyped-def]
    values = torch.tensor([score for score, _ in rows])
    free = torch.tensor([candidate for _, candidate in rows])
    total = data.draw(st.integers(int((~free).sum()), len(rows)))
    got = OPS["select"].overload(values, free, total)
    np.testing.assert_array_equal(got.numpy(), by_hand.selected(values, free, total))
    assert got.tolist() == sorted(set(got.tolist()))


@pytest.mark.parametrize("kept", [1, 3, 6])
def test_gathering_what_was_restored_gives_the_rows_back(kept: int) -> None:
    index = torch.rand(2, 6).argsort(-1)[:, :kept].sort(-1)[0]
    x = torch.randn(2, kept, 4)
    whole = OPS["restore"].overload(x, index, 6, 1, [0])
    assert torch.equal(OPS["gather"].overload(whole, index, 1, [0]), x)


def test_scores_and_candidates_of_other_sizes_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="scores and candidates differ"):
        OPS["select"].overload(torch.randn(2, 5), torch.ones(2, 4, dtype=torch.bool), 2)
