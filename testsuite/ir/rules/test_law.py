"""The law checker sees wrong rules, each put into a copy of the table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from testsuite.ir.rules.law import violations
from testsuite.ir.rules.sample import Sample, call, real, truth

from tokopt.ir.axis import Axis, align_factors
from tokopt.ir.call import Call
from tokopt.ir.rules import load_rules

aten = torch.ops.aten


def straight(c: Call) -> None:
    for dim in range(len(c.out)):
        c.link(c.tensors()[0], dim, dim)


def nothing(c: Call) -> None:
    pass


def last_folded(c: Call) -> None:
    c.link(c.tensors()[0], 0, 0)
    c.fold(c.tensors()[0], -1)


def one_off(c: Call) -> None:
    c.link(c.tensors()[0], 0, 0)
    c.pick(c.tensors()[0], 1, 1, 3)


def inner_first(c: Call) -> None:
    c.dims(c.tensors()[0])[0].factors = [c.out[1], c.out[0]]


def later_first(c: Call) -> None:
    c.out[0].parts = [c.dims(c.tensors()[1])[0], c.dims(c.tensors()[0])[0]]


def kept_values(c: Call) -> None:
    c.move(c.tensors()[0], 0, 0, "sorts rows")


def without_index(c: Call) -> None:
    c.move(c.tensors()[0], 0, 0, "reads rows by an index")


def apart(c: Call) -> None:
    for operand in c.tensors():
        c.fold(operand, 0)


def to_the_left(c: Call) -> None:
    straight(c)
    c.dims(c.tensors()[1])[0].parent = c.dims(c.tensors()[0])[0]


def outer_windows(c: Call) -> None:
    inner, x = Axis(2), c.tensors()[0]
    c.link(x, 0, 0)
    align_factors([inner, c.out[1]], [c.dims(x)[1]])
    c.mix(x, 1, "combines neighbouring rows", inner)


def lends(c: Call) -> None:
    c.broadcast(c.tensors()[0], c.out)
    c.unread(c.tensors()[1])


WRONG: list[tuple[Callable[[Call], None], Sample, str]] = [
    (straight, call(aten.transpose.int, real(3, 3), 0, 1), "equivariance"),
    (straight, call(aten.transpose.int, real(2, 3), 0, 1), "completeness"),
    (straight, call(aten.softmax.int, real(2, 3), 1), "locality"),
    (straight, call(aten.cumsum.default, real(2, 3), 1), "equivariance"),
    (straight, call(aten.flip.default, real(2, 5), [1]), "locality"),
    (straight, call(aten.index_select.default, real(3), 0, torch.tensor([1, 2, 0])),
     "equivariance"),
    (straight, call(aten.avg_pool1d.default, real(3, 5), [3], [1], [1]), "locality"),
    (nothing, call(aten.neg.default, real(2, 3)), "completeness"),
    (nothing, call(aten.neg.default, real(2, 3)), "equivariance"),
    (last_folded, call(aten.sum.dim_IntList, real(3, 3), [0]), "equivariance"),
    (last_folded, call(aten.select.int, real(2, 3), 1, 2), "equivariance"),
    (last_folded, call(aten.argmax.default, real(2, 3), 1), "equivariance"),
    (one_off, call(aten.slice.Tensor, real(2, 5), 1, 0, 3), "range"),
    (one_off, call(aten.slice.Tensor, real(2, 5), 1, 1, 3), "range"),
    (inner_first, call(aten.view.default, real(6), [2, 3]), "equivariance"),
    (later_first, call(aten.cat.default, [real(2), real(3)]), "equivariance"),
    (kept_values, call(aten.argsort.default, real(3)), "move"),
    (without_index, call(aten.index_select.default, real(3), 0, torch.tensor([1, 2])),
     "completeness"),
    (apart, call(aten.dot.default, real(3), real(3)), "equivariance"),
    (outer_windows, call(aten.avg_pool1d.default, real(3, 8), [2]), "equivariance"),
    (outer_windows, call(aten.slice.Tensor, real(3, 8), 1, 1, 8, 2), "equivariance"),
    (lends, call(aten.add.Tensor, real(3), real(3)), "unread"),
    (to_the_left, call(aten.where.self, truth(3, 3), real(3), real(3, 3)), "equivariance"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "sample", "law"), WRONG, ids=[f"{w.__name__}-{s}-{law}" for w, s, law in WRONG]
)
def test_a_wrong_rule_breaks_a_law(
    wrong: Any, sample: Sample, law: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert violations(sample) == []
    table = {**load_rules(), sample.name: wrong}
    monkeypatch.setattr("tokopt.ir.dims.load_rules", lambda: table)
    assert any(text.startswith(law) for text in violations(sample))


def test_a_piece_of_an_axis_is_found_in_all_its_places() -> None:
    from testsuite.ir.rules.tree import permuted, places

    part = Axis(3)
    whole = Axis(14, factors=[Axis(2), Axis(7, parts=[Axis(1), part, part])])
    assert places(whole, part).tolist() == [-1, 0, 1, 2, 0, 1, 2] * 2
    turned = permuted(whole, part, torch.tensor([2, 1, 0])).tolist()
    assert turned == [0, 3, 2, 1, 6, 5, 4, 7, 10, 9, 8, 13, 12, 11]
