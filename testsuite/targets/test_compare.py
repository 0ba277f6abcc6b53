from __future__ import annotations

import math

import pytest
import torch

from tokopt.targets.compare import Tolerance, compare, differences

NAN, INF = math.nan, math.inf


def test_equal_outputs_have_no_difference() -> None:
    outputs = {"a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.tensor([NAN, INF, -INF])}
    assert compare(outputs, {n: t.clone() for n, t in outputs.items()}) == []
    assert [d.max_difference for d in differences(outputs, outputs)] == [0, 0, 0]


def test_the_first_output_that_differs_is_named_with_its_place_and_size() -> None:
    wanted = {"a": torch.zeros(2), "b": torch.zeros(2, 3), "c": torch.zeros(1)}
    got = {name: value.clone() for name, value in wanted.items()}
    got["b"][1, 2], got["c"][0] = 0.5, 1.0
    first = compare(wanted, got)[0]
    assert (first.name, first.index, first.max_difference) == ("b", (1, 2), 0.5)
    assert (first.reference, first.got) == (0.0, 0.5)
    assert "b[1, 2]: 0.5 instead of 0.0" in str(first)


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_the_allowed_difference_grows_with_the_largest_value(scale: float) -> None:
    wanted = {"a": torch.tensor([scale, 0.0])}
    allowed = 1e-4 + 1e-4 * scale
    assert compare(wanted, {"a": torch.tensor([scale, allowed * 0.9])}) == []
    assert compare(wanted, {"a": torch.tensor([scale, allowed * 1.1])}) != []


@pytest.mark.parametrize(("one", "other"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (INF, -INF)])
def test_nan_and_infinity_equal_only_themselves(one: float, other: float) -> None:
    (found,) = compare({"a": torch.tensor([0.0, one])}, {"a": torch.tensor([0.0, other])})
    assert found.max_difference == INF and found.index == (1,)


def test_integers_and_booleans_must_be_equal() -> None:
    large = torch.tensor([2**60])
    assert compare({"a": large}, {"a": large + 1}, Tolerance(10, 10)) != []
    assert compare({"a": torch.tensor([True])}, {"a": torch.tensor([False])}) != []


@pytest.mark.parametrize(
    ("got", "problem"),
    [
        ({}, "is missing"),
        ({"a": torch.zeros(3)}, "has shape [3] instead of [2]"),
        ({"a": torch.zeros(2, dtype=torch.float64)}, "has dtype"),
        ({"a": torch.zeros(2), "z": torch.zeros(1)}, "is not expected"),
    ],
)
def test_what_cannot_be_compared_is_a_difference(
    got: dict[str, torch.Tensor], problem: str
) -> None:
    (found,) = compare({"a": torch.zeros(2)}, got)
    assert problem in found.problem and not found.within


def test_a_given_tolerance_replaces_the_table() -> None:
    wanted, got = {"a": torch.zeros(1)}, {"a": torch.full((1,), 1e-5)}
    assert compare(wanted, got) == []
    assert compare(wanted, got, Tolerance(1e-6, 0)) != []


def test_scalars_and_empty_outputs_compare() -> None:
    assert compare({"a": torch.tensor(1.0)}, {"a": torch.tensor(2.0)})[0].index == ()
    assert compare({"a": torch.zeros(0, 3)}, {"a": torch.zeros(0, 3)}) == []
