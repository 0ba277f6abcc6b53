from __future__ import annotations

import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.export import Dim, export

from tokopt.ir.lengths import (
    is_longer,
    is_one,
    length_of,
    minus,
    product,
    quotient,
    same_length,
    simplified,
    total,
)

S, T = sympy.symbols("s t", positive=True, integer=True)
small = st.integers(0, 40)
# a + b s + c t: lengths as graphs have them
linear = st.builds(lambda a, b, c: simplified(a + b * S + c * T), small, small, small)


def at(length: object, s: int, t: int) -> int:
    return int(sympy.sympify(length).subs({S: s, T: t}))


def test_symbolic_sizes_of_a_program_become_expressions_and_others_ints() -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x, x], 1)

    shapes = {"x": {1: Dim("n", min=2, max=9)}}
    exported = export(Twice(), (torch.zeros(3, 4),), dynamic_shapes=shapes)
    value = next(n for n in exported.graph.nodes if "cat" in n.name).meta["val"]
    rows, columns = (length_of(size) for size in value.shape)
    assert rows == 3 and isinstance(rows, int)
    assert isinstance(columns, sympy.Expr) and len(columns.free_symbols) == 1
    assert quotient(columns, 2) == next(iter(columns.free_symbols))


def test_only_the_constant_one_is_one() -> None:
    assert is_one(1) and not is_one(2) and not is_one(S) and not is_one(0)


def test_lengths_are_the_same_only_where_they_always_are() -> None:
    assert same_length(S * 2, S + S) and same_length((S + 1) * 2, 2 * S + 2)
    assert not same_length(S, 4) and not same_length(S, T) and not same_length(3, 4)


def test_what_a_symbol_leaves_open_is_not_decided() -> None:
    assert is_longer(S, 1) is True and is_longer(S + 5, S) is True
    assert is_longer(S, S) is False and is_longer(1, S) is False and is_longer(S, S + 1) is False
    assert is_longer(S, 7) is None and is_longer(S, T) is None and is_longer(2 * S, S + 5) is None


def test_only_exact_quotients_exist() -> None:
    assert quotient(12, 4) == 3 and quotient(12, 5) is None and quotient(3, 0) is None
    assert quotient(6 * S, 3) == 2 * S and quotient(6 * S, S) == 6
    assert quotient(S, 2) is None and quotient(S + 1, S) is None and quotient(3 * S, 2 * S) is None
    assert quotient(S * T, T) == S and same_length(quotient(S * S + S, S) or 0, S + 1)
    assert isinstance(quotient(6 * S, S), int)


@given(linear, linear, st.integers(2, 9), st.integers(2, 9))
def test_arithmetic_agrees_with_every_value_of_the_symbols(a, b, s, t) -> None:  # type: ignore[no-untyped-def]
    x, y = at(a, s, t), at(b, s, t)
    assert at(minus(a, b), s, t) == x - y
    assert at(total([a, b, 1]), s, t) == x + y + 1
    assert at(product([a, b, 2]), s, t) == x * y * 2
    assert not same_length(a, b) or x == y
    assert is_longer(a, b) in (None, x > y)
    if (ratio := quotient(a, b)) is not None and y:
        assert at(ratio, s, t) * y == x


@given(linear, st.integers(1, 9))
def test_a_product_can_be_divided_again(a, k) -> None:  # type: ignore[no-untyped-def]
    assert same_length(quotient(product([a, k]), k), a)
