"""What a symbolic size may be made of: ``build(name, ...)`` makes one node, or refuses.

Sound because the tables name only classes of sympy and torch that build expressions, because
exponents and numbers are bounded (no ``Pow(10, Pow(10, 10))``), and because text is an argument of
nothing but our own literals: a function of sympy would *evaluate* a string that it is given.
Names: those of the classes, which is what sympy's ``srepr`` prints; the list is
``torch/utils/_sympy/functions.py`` and the node kinds of torch's ``SymNode``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sympy
from torch.utils._sympy import functions as sizes

from tokopt.ir.errors import InputError

_STEEPEST, _LARGEST = 64, 1 << 128
_SYMBOL = re.compile(r"[A-Za-z_]{1,40}\d{0,5}", re.ASCII)
_DIGITS = re.compile(r"-?\d{1,40}(\.\d{1,40})?(e[+-]?\d{1,3})?", re.ASCII)
_ASSUMPTIONS = frozenset({"integer", "positive", "negative", "nonnegative", "real", "zero"})


def check_symbol(name: object) -> str:
    """Return ``name`` if it can name a symbolic size, else raise ``InputError``.

    The number is short because torch counts up to it when it reads ``u<number>``.
    """
    if not isinstance(name, str) or not _SYMBOL.fullmatch(name):
        raise InputError(f"{name!r:.80} is not the name of a symbolic size", expected="s27 or u0")
    return name


def _symbol(name: object, **assumptions: object) -> sympy.Symbol:
    if not assumptions.keys() <= _ASSUMPTIONS or not set(assumptions.values()) <= {True, False}:
        raise InputError(f"a symbolic size with assumptions {assumptions!r:.80}")
    return sympy.Symbol(check_symbol(name), **assumptions)


def _rational(*numbers: object) -> sympy.Rational:
    if not 1 <= len(numbers) <= 2 or not all(type(number) is int for number in numbers):
        raise InputError(f"a fraction of {numbers!r:.80}")
    return sympy.Rational(*numbers)


def _float(digits: object, precision: object = 53) -> sympy.Float:
    if not isinstance(digits, str) or not _DIGITS.fullmatch(digits) or precision != 53:
        raise InputError(f"a real number {digits!r:.80} of precision {precision!r:.20}")
    return sympy.Float(digits, precision=53)


def _power(kind: Callable[..., Any]) -> Callable[[Any, Any], Any]:
    """``kind(base, exponent)``, if the numbers that it makes stay small."""

    def build_power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
        if not exponent.is_Number or abs(exponent) > _STEEPEST:
            raise InputError(f"a size is raised to the power {exponent!s:.40}")
        if any(abs(number) > _LARGEST for number in base.atoms(sympy.Number)):
            raise InputError("a size holds a number of more than 128 bits")
        return kind(base, exponent)

    return build_power


_LITERALS: Mapping[str, Callable[..., sympy.Basic]] = {
    "Symbol": _symbol,
    "Integer": _rational,
    "Rational": _rational,
    "Float": _float,
}
_SYMPY = (
    "Add Mul And Or Not Xor Equality Unequality StrictLessThan LessThan StrictGreaterThan"
    " GreaterThan Piecewise Abs floor ceiling"
)
_TORCH = (
    "FloorDiv ModularIndexing Where PythonMod Mod CleanDiv CeilToInt FloorToInt CeilDiv"
    " FloatTrueDiv IntTrueDiv IsNonOverlappingAndDenseIndicator TruncToFloat TruncToInt RoundToInt"
    " RoundDecimal ToFloat Identity Max Min BitwiseFn_bitwise_and BitwiseFn_bitwise_or"
    " BitwiseFn_bitwise_xor OpaqueUnaryFn_sqrt OpaqueUnaryFn_exp OpaqueUnaryFn_log"
    " OpaqueUnaryFn_log2"
)
_FUNCTIONS: Mapping[str, Callable[..., sympy.Basic]] = {
    **{name: getattr(sympy, name) for name in _SYMPY.split()},
    **{name: getattr(sizes, name) for name in _TORCH.split()},
    **{name: _power(getattr(sizes, name)) for name in ("PowByNatural", "FloatPow", "LShift")},
    "Pow": _power(sympy.Pow),
    "ExprCondPair": sympy.functions.elementary.piecewise.ExprCondPair,
}
KNOWN = frozenset({*_LITERALS, *_FUNCTIONS})
"""Every name that ``build`` takes."""


def build(name: str, positional: Sequence[Any], named: Mapping[str, Any]) -> sympy.Basic:
    """Make the node ``name(*positional, **named)``; raises ``InputError`` unless it is harmless.

    Arguments are results of ``build`` and, for literals only, Python's ``int``, ``str``, ``bool``.
    """
    if name in _LITERALS:
        return _LITERALS[name](*positional, **named)
    if named or not all(isinstance(argument, sympy.Basic) for argument in positional):
        raise InputError(f"a symbolic size calls {name} with {positional!r:.80} {named!r:.80}")
    return _FUNCTIONS[name](*positional)
