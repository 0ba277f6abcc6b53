"""Contractions: linear layers, matrix products, convolutions, attention."""

from __future__ import annotations

from torch import fx

from tokopt.ir.axis import Axis, align_factors, unify
from tokopt.ir.call import Call
from tokopt.ir.lengths import is_one, quotient, same_length
from tokopt.ir.rules import rule

FEATURES = "a learned weight is applied along the dim"


@rule("linear")
def linear(call: Call) -> None:
    """``out[…, o] = Σ_i x[…, i] w[o, i] + b[o]``: rows pass, features meet weights."""
    x, weight, *bias = call.tensors() if len(call.tensors()) > 1 else call.tensors() * 2
    for dim in range(len(call.dims(x)) - 1):
        call.link(x, dim, dim)
    last = len(call.dims(x)) - 1
    unify(call.dims(x)[last], call.dims(weight)[-1])
    call.mix(x, last, FEATURES)
    call.mix(weight, len(call.dims(weight)) - 1, FEATURES)
    if len(call.dims(weight)) == 2:
        call.link(weight, 0, len(call.out) - 1)
    for b in bias:
        call.broadcast(b, call.out)


@rule("addmm", "baddbmm", "addmv")
def add_product(call: Call) -> None:
    """``out = bias + x @ y``."""
    bias, x, y = (call.get(name) for name in list(call.arguments)[:3])
    _product(call, x, y)
    call.broadcast(bias, call.out)


@rule("addbmm")
def add_products(call: Call) -> None:
    """``out = bias + Σ_b x[b] @ y[b]``."""
    bias, x, y = (call.get(name) for name in ("self", "batch1", "batch2"))
    for operand, row in ((x, 1), (y, 2)):
        call.link(operand, row, row - 1)
        call.fold(operand, 0)
        call.fold(operand, 3 - row)
    unify(call.dims(x)[0], call.dims(y)[0])
    unify(call.dims(x)[2], call.dims(y)[1])
    call.broadcast(bias, call.out)


@rule("matmul", "mm", "bmm", "mv", "dot")
def product(call: Call) -> None:
    """``out = x @ y``: rows of x and columns of y pass, the inner dim is folded as a set."""
    x, y = list(call.arguments.values())[:2]
    _product(call, x, y)


def _product(call: Call, x: fx.Node, y: fx.Node) -> None:
    a, b = call.dims(x), call.dims(y)
    inner_a, inner_b = len(a) - 1, max(0, len(b) - 2)
    if same_length(a[inner_a].length, b[inner_b].length):
        unify(a[inner_a], b[inner_b])
    call.fold(x, inner_a)
    call.fold(y, inner_b)
    rows = 1 if len(a) > 1 else 0
    columns = 1 if len(b) > 1 else 0
    batch = call.out[: len(call.out) - rows - columns]
    if rows:
        call.broadcast_one(x, len(a) - 2, call.out[len(batch)])
    if columns:
        call.broadcast_one(y, len(b) - 1, call.out[-1])
    for operand, own in ((x, a[:-2]), (y, b[:-2])):
        for back in range(1, len(own) + 1):
            if back <= len(batch):
                call.broadcast_one(operand, len(own) - back, batch[-back])


@rule("outer", "ger")
def outer(call: Call) -> None:
    """``out[i, j] = x[i] y[j]``."""
    x, y = list(call.arguments.values())[:2]
    call.broadcast_one(x, 0, call.out[0])
    call.broadcast_one(y, 0, call.out[1])


@rule("einsum")
def einsum(call: Call) -> None:
    """Letters are axes; letters absent from the output are folded as sets."""
    equation = call.get("equation").replace(" ", "")
    left, _, right = equation.partition("->")
    operands = list(call.get("tensors"))
    if "." in equation or (not right and "->" not in equation):
        for operand in operands:
            for dim in range(len(call.dims(operand))):
                call.mix(operand, dim, "is an einsum with implicit or elliptic letters")
        return
    seen = {letter: call.out[i] for i, letter in enumerate(right)}
    for operand, letters in zip(operands, left.split(","), strict=True):
        for dim, letter in enumerate(letters):
            axis = call.dims(operand)[dim]
            first = seen.setdefault(letter, axis)
            if not is_one(axis.length) and same_length(axis.length, first.length):
                unify(axis, first)
            if letter not in right:
                call.fold(operand, dim)


@rule("scaled_dot_product_attention")
def attention(call: Call) -> None:
    """Query rows pass; key and value rows are the same set and are folded; the mask has both."""
    query, key, value = (call.get(name) for name in ("query", "key", "value"))
    for dim in range(len(call.dims(query)) - 1):
        call.link(query, dim, dim)
    call.link(value, len(call.dims(value)) - 1, len(call.out) - 1)
    for operand in (key, value):
        for dim in range(len(call.dims(operand)) - 2):
            call.broadcast_one(operand, dim, call.out[dim])
        if call.get("enable_gqa"):
            _grouped(call, operand)
        call.fold(operand, len(call.dims(operand)) - 2)
    unify(call.dims(key)[-2], call.dims(value)[-2])
    unify(call.dims(query)[-1], call.dims(key)[-1])
    for operand in (query, key):
        call.fold(operand, len(call.dims(operand)) - 1)
    mask = call.get("attn_mask")
    if call.is_tensor(mask):
        target = [*call.out[:-2], call.dims(query)[-2], call.dims(key)[-2]]
        call.broadcast(mask, target)
        call.fold(mask, len(call.dims(mask)) - 1)
    if call.get("is_causal") and call.dims(query)[-2].root is not call.dims(key)[-2].root:
        for operand in (query, key):
            row = len(call.dims(operand)) - 2
            call.mix(operand, row, "is_causal compares positions of different axes")


def _grouped(call: Call, operand: fx.Node) -> None:
    """Query head h reads key head h // group: heads are key heads times groups."""
    own, heads = call.dims(operand)[-3], call.out[-3]
    group = quotient(heads.length, own.length)
    if group is not None and not is_one(group):
        align_factors([own, Axis(group)], [heads])
