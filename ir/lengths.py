"""Lengths: exact arithmetic on sizes that are integers or symbolic expressions.

A size is an ``int`` or a sympy expression over shape symbols, which are positive integers.
Nothing here guesses: a question that the symbols leave open is answered ``None`` or ``False``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, TypeAlias

import sympy
import torch

Length: TypeAlias = "int | sympy.Expr"


def length_of(size: Any) -> Length:
    """Return the length behind one entry of a tensor's shape (``int`` or ``torch.SymInt``)."""
    if isinstance(size, torch.SymInt):
        expr = size.node.expr
        return int(expr) if expr.is_Integer else expr
    return int(size)


def is_one(length: Length) -> bool:
    """Return whether the length is the constant 1."""
    return isinstance(length, int) and length == 1


@lru_cache(maxsize=65536)
def _difference(a: Length, b: Length) -> sympy.Expr:
    return sympy.expand(sympy.sympify(a) - sympy.sympify(b))


def same_length(a: Length, b: Length) -> bool:
    """Return whether two lengths are equal for every value of the symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    return bool(_difference(a, b) == 0)


def same_shape(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Return whether two shapes are equal for every value of the symbols.

    Comparing shapes with ``==``, or putting them in a set, would bind their symbols to numbers.
    """
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(same_length(length_of(a), length_of(b)) for a, b in pairs)


def is_longer(a: Length, b: Length) -> bool | None:
    """Return whether ``a > b`` always (True), never (False), or that it depends (None).

    A symbol counts as at least 2: torch.export specialises the sizes 0 and 1.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a > b
    difference = _difference(a, b)
    shifted = difference.subs(
        {s: sympy.Dummy(integer=True, nonnegative=True) + 2 for s in difference.free_symbols}
    )
    shifted = sympy.expand(shifted)
    if shifted.is_positive:
        return True
    if shifted.is_nonpositive:
        return False
    return None


@lru_cache(maxsize=65536)
def quotient(a: Length, b: Length) -> Length | None:
    """Return ``a / b`` when ``b`` divides ``a`` exactly for every value of the symbols."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    numerator, denominator = sympy.fraction(ratio)
    if denominator != 1 or any(not c.is_integer for c in numerator.as_coefficients_dict().values()):
        return None
    return simplified(ratio)


def simplified(length: Any) -> Length:
    """Return a sympy result as a plain ``int`` where it is one."""
    expr = sympy.sympify(length)
    return int(expr) if expr.is_Integer else expr


def minus(a: Length, b: Length) -> Length:
    """Return ``a - b``."""
    if isinstance(a, int) and isinstance(b, int):
        return a - b
    return simplified(_difference(a, b))


def total(lengths: list[Length]) -> Length:
    """Return the sum of lengths."""
    return simplified(sum(lengths))


def product(lengths: list[Length]) -> Length:
    """Return the product of lengths."""
    result: Any = 1
    for length in lengths:
        result = result * length
    return simplified(result)
