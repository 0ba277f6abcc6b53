"""Contractions: sums of products over an inner dim, without the entries that are absent.

An entry ``(m, n)`` of ``x @ y`` is dead where row ``m`` of x or column ``n`` of y is dead as a
whole: a dropped row against features, a dropped column of scores.  Elsewhere the sum runs over the
inner entries present on both sides.  Over features all are present.  Over tokens (probabilities
times values) the dropped ones are absent on *both* sides, because both were computed from the same
rows; an entry absent on one side only means that rows were combined by position (learned weights
over tokens, features of rows that were regrouped), and is refused.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import bare, bury, dead_entries, either, filled
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.table import rule

ONE_SIDED = "entries that were dropped meet entries that were not in a sum of products"


@rule("matmul", "mm", "bmm", "mv", "dot")
def product(call: Operation) -> Any:
    """``x @ y``."""
    return _product(call, *list(call.given)[:2])


@rule("addmm", "baddbmm", "addmv")
def add_product(call: Operation) -> Any:
    """``bias + x @ y``."""
    bias, x, y = list(call.given)[:3]
    return _product(call, x, y, bias)


@rule("linear")
def linear(call: Operation) -> Any:
    """``x @ weight.T + bias``."""
    return _product(call, "input", "weight", "bias", turned=True)


def _product(
    call: Operation, x: str, y: str, bias: str | None = None, *, turned: bool = False
) -> Any:
    left, right = (bare(call.get(name)) for name in (x, y))
    dx, dy = call.dead(x), call.dead(y)
    if turned:
        right, dy = right.mT, None if dy is None else dy.mT
    vectors = left.ndim == 1, right.ndim == 1
    dx = dx[None, :] if dx is not None and vectors[0] else dx
    dy = dy[:, None] if dy is not None and vectors[1] else dy
    dead = _dead_products(call, dx, dy)
    if dead is not None:
        dead = dead.squeeze(-2) if vectors[0] else dead
        dead = dead.squeeze(-1) if vectors[1] else dead
    result = call.run({name: filled(call.get(name), 0) for name in (x, y)})
    return bury(result, either(dead, call.dead(bias) if bias else None))


def _dead_products(call: Operation, dx: Tensor | None, dy: Tensor | None) -> Tensor | None:
    """Return the dead entries of ``[…, M, K] @ […, K, N]`` (``M`` or ``N`` may be left at 1)."""
    if dx is None and dy is None:
        return None
    row = None if dx is None else dx.all(-1, keepdim=True)
    column = None if dy is None else dy.all(-2, keepdim=True)
    dead = either(row, column)
    assert dead is not None
    if dx is not None and dy is not None:
        x, y = dx.float(), dy.float()
        alone = (x @ (1 - y) + (1 - x) @ y) > 0
    elif dx is not None:
        alone = dx.any(-1, keepdim=True)
    else:
        assert dy is not None
        alone = dy.any(-2, keepdim=True)
    if bool((alone & ~dead).any()):
        raise call.refuse(ONE_SIDED)
    return dead


@rule("einsum")
def einsum(call: Operation) -> Any:
    """One or two operands with plain letters; a letter left out is an inner dim."""
    left, _, out = call.get("equation").replace(" ", "").partition("->")
    letters, operands = left.split(","), list(call.get("tensors"))
    plain = len(operands) <= 2 and "->" in call.get("equation") and "." not in left
    if not plain or any(len(set(word)) != len(word) for word in letters):
        raise call.refuse("an einsum of this form has no rule", "spell it out as matrix products")
    masks = [_mask(value) for value in operands]
    dead = either(*(_outer(m, word, out) for m, word in zip(masks, letters, strict=True)))
    assert dead is not None
    if len(operands) == 2:
        for word, other, mask in zip(letters, reversed(letters), masks, strict=True):
            if set(word) - set(other) - set(out) and bool(mask.any()):
                raise call.refuse("an einsum adds up one operand alone")
        x, y = (mask.float() for mask in masks)
        equation = call.get("equation")
        alone = torch.einsum(equation, x, 1 - y) + torch.einsum(equation, 1 - x, y)
        if bool(((alone > 0) & ~dead).any()):
            raise call.refuse(ONE_SIDED)
    return bury(call.run({"tensors": [filled(value, 0) for value in operands]}), dead)


def _mask(value: Any) -> Tensor:
    dead = dead_entries(value)
    return torch.zeros_like(bare(value), dtype=torch.bool) if dead is None else dead


def _outer(mask: Tensor, word: str, out: str) -> Tensor:
    """Return a mask over the output's letters: dead where all inner entries are."""
    inner = tuple(i for i, letter in enumerate(word) if letter not in out)
    mask = mask.all(inner) if inner else mask
    left = [letter for letter in word if letter in out]
    mask = mask.permute([left.index(letter) for letter in out if letter in left])
    for position, letter in enumerate(out):
        mask = mask if letter in left else mask.unsqueeze(position)
    return mask


@rule("outer", "ger", "kron")
def outer(call: Operation) -> Any:
    """Every entry of one vector times every entry of the other."""
    if call.name == "kron":
        raise call.refuse("a Kronecker product has no rule")
    x, y = (_mask(value) for value in list(call.given.values())[:2])
    return bury(call.run(), x[:, None] | y[None, :])
