"""Readable names for symbolic sizes: ``batch`` and ``input_ids_dim1`` instead of ``s77``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch

from tokopt.ir.tensors import Tensor

Dim = int | str
"""A size: a number, a symbol's readable name, or an expression over such names."""


def symbol_names(inputs: Iterable[Tensor]) -> dict[str, str]:
    """Name every symbolic size after where an input has it first.

    The symbol of axis 0 is ``batch`` where all inputs with a symbolic axis 0 share one.
    """
    names: dict[str, str] = {}
    leading: set[str] = set()
    for tensor in inputs:
        for axis, size in enumerate(tensor.value.shape):
            if isinstance(size, torch.SymInt) and str(size).isidentifier():
                names.setdefault(str(size), f"{tensor.name}_dim{axis}")
                if axis == 0:
                    leading.add(str(size))
    if len(leading) == 1:
        names[leading.pop()] = "batch"
    return names


def readable(size: int | torch.SymInt, names: Mapping[str, str]) -> Dim:
    """Return ``size`` as a number or as text over the readable ``names``."""
    if isinstance(size, int):
        return size
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(size))


def size_of(text: Dim, known: Mapping[str, int]) -> int | None:
    """Return a size whose symbols are known: a number, or a sum of products of names and numbers.

    None where a name is not known, or the text is of another form.
    """
    total = 0
    for term in str(text).split("+"):
        product = 1
        for factor in (one.strip() for one in term.split("*")):
            if not factor.isdecimal() and factor not in known:
                return None
            product *= int(factor) if factor.isdecimal() else known[factor]
        total += product
    return total
