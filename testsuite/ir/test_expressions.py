from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sympy
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sympy import srepr
from torch.utils._sympy import functions as sizes

from tokopt.ir.errors import InputError
from tokopt.ir.expression_calls import KNOWN
from tokopt.ir.expressions import parse_expression

S = sympy.Symbol("s7", positive=True, integer=True)
T = sympy.Symbol("s27", positive=True, integer=True)
U = sympy.Symbol("u0", integer=True)

PRINTED = [
    S * 4,
    S - 3,
    sizes.FloorDiv(S, 2),
    sizes.CeilDiv(S, 3),
    sizes.CleanDiv(S, 3),
    sizes.Mod(S * T, 5),
    sizes.PythonMod(U, 3),
    sizes.Max(S, U, 3),
    sizes.Min(S, T),
    sizes.ModularIndexing(S, 2, 3),
    sizes.Where(S > 3, S, U),
    sizes.IntTrueDiv(S, U),
    sizes.CeilToInt(sizes.IntTrueDiv(S, 2)),
    sizes.TruncToInt(sympy.Float(2.5) * sizes.ToFloat(S)),
    sizes.RoundToInt(sizes.ToFloat(U)),
    sizes.FloatPow(sizes.ToFloat(S), sympy.Float(0.1)),
    sizes.OpaqueUnaryFn_sqrt(sizes.ToFloat(S)),
    sizes.BitwiseFn_bitwise_and(S, U),
    sizes.Identity(S),
    sizes.IsNonOverlappingAndDenseIndicator(S, 4, T, 1),
    sympy.Piecewise((S, S > 3), (U, True)),
    sympy.And(S > 3, U < 5, sympy.Or(sympy.Eq(S, T), sympy.Ne(U, 4))),
    S**2 / 3,
    sympy.Rational(-1, 2) * S,
    sympy.Integer(-(2**63)),
    sympy.true,
    sympy.floor(S / 2),
]


@pytest.mark.parametrize("expression", PRINTED, ids=str)
def test_every_kind_of_size_that_torch_prints_is_read_back(expression: sympy.Basic) -> None:
    read = parse_expression(srepr(expression))
    assert read == expression and type(read) is type(expression)
    assert {s.assumptions0["integer"] for s in read.free_symbols} <= {True}


def test_every_function_that_torchs_deserializer_knows_is_known() -> None:
    import inspect

    from torch._export.serde.serialize import GraphModuleDeserializer

    source = inspect.getsource(GraphModuleDeserializer.deserialize)
    theirs = {name for name in dir(sizes) if f'"{name}": torch.utils._sympy.functions' in source}
    assert len(theirs) > 15 and theirs - {"RShift"} <= KNOWN


leaves = st.sampled_from([S, T, U]) | st.integers(-9, 9).map(sympy.Integer)


def grown(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    positive = st.integers(1, 9).map(sympy.Integer)
    conditions = st.builds(
        lambda kind, a, b: kind(a, b),
        st.sampled_from([sympy.Lt, sympy.Ge, sympy.Eq, sympy.Ne]),
        inner,
        inner,
    )
    return st.one_of(
        st.builds(lambda a, b: a + b, inner, inner),
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, n: a**n, inner, st.integers(0, 3)),
        st.builds(sizes.FloorDiv, inner, positive),
        st.builds(sizes.Mod, st.sampled_from([S, T, S * T, S + 4]), positive),
        st.builds(sizes.Max, inner, inner),
        st.builds(sizes.Min, inner, inner),
        st.builds(lambda c, a, b: sympy.Piecewise((a, c), (b, True)), conditions, inner, inner),
    )


@settings(max_examples=100, deadline=None)
@given(st.recursive(leaves, grown, max_leaves=8))
def test_a_random_size_is_the_same_after_printing_and_parsing(expression: sympy.Basic) -> None:
    assume(not expression.has(sympy.ITE))  # sympy's own simplification; torch prints none
    assert parse_expression(srepr(expression)) == expression


words = st.sampled_from(
    [*sorted(KNOWN), "(", ")", ",", "=", "'s1'", "'os'", "7", "-3", "true", "integer", "__import__"]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(words, max_size=12).map(" ".join) | st.text(max_size=30))
def test_random_text_is_a_size_or_an_input_error(text: str) -> None:
    try:
        assert isinstance(parse_expression(text), sympy.Basic)
    except InputError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "3",
        "'s1'",
        "s1 + 3",
        "Integer(3) + Integer(4)",
        "Integer(3",
        "Integer(3))",
        "Integer('3')",
        "Integer(True)",
        "Symbol(3)",
        "Symbol('s1', commutative=False)",
        "Symbol('s1', positive=Symbol('u0'))",
        "Symbol('u99999999')",
        "Symbol('lambda: 1')",
        "Add('os', Integer(1))",
        "Add(Integer(1), evaluate=False)",
        "floor('os.name')",
        "Function('f')",
        "Float('1e999999', precision=53)",
        "Float('1.5', precision=100000)",
        "FloorDiv(Integer(1), Integer(0))",
        "Pow(Integer(10), Pow(Integer(10), Integer(10)))",
        "Pow(Integer(2), Symbol('s1'))",
        "LShift(Integer(1), Integer(1000000))",
        "Pow(" * 3 + "Integer(123456789)" + ", Integer(64))" * 3,
        "Integer(" + "9" * 41 + ")",
        "Identity(" * 100 + "Integer(1)" + ")" * 100,
        "Add(" + "Integer(1), " * 10_000 + ")",
    ],
)
def test_what_is_no_size_or_too_large_is_refused(text: str) -> None:
    with pytest.raises(InputError) as refused:
        parse_expression(text)
    assert len(str(refused.value)) < 500


def test_text_reaches_no_function_of_sympy_which_would_evaluate_it(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    code = f"__import__('pathlib').Path('{marker}').touch()"
    for text in (code, f'floor("{code}")', f"Symbol({code})", f'Symbol("{code}")'):
        with pytest.raises(InputError):
            parse_expression(text)
    assert not marker.exists()
    evaluators: list[Callable[[str], Any]] = [sympy.sympify, sympy.floor]
    for evaluate in evaluators:
        try:
            evaluate(code)
        except Exception:
            pass
        assert marker.exists(), "this text is no attack: the test proves nothing"
        marker.unlink()
