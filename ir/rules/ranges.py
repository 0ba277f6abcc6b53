"""Ranges of rows: slices, splits, single rows, and writing a range."""

from __future__ import annotations

import sys

from torch import fx

from tokopt.ir.axis import Axis, unify
from tokopt.ir.call import Call
from tokopt.ir.lengths import Length, length_of, minus, same_length, total
from tokopt.ir.rules import rule
from tokopt.ir.rules.windows import window_factor
from tokopt.ir.slicing import sliced


def read_range(call: Call, operand: fx.Node, dim: int, start: Length, out: Axis) -> None:
    """State that ``out`` is the rows from ``start`` of an operand's dim."""
    if same_length(out.length, 0):
        call.pick(operand, dim, 0, 0)
        return
    axis = call.dims(operand)[dim]
    part = sliced(axis, start, out.length)
    if part is None:
        call.mix(operand, dim, "reads a range of rows whose place depends on a symbolic size")
        return
    unify(part, out)
    call.pick(operand, dim, start, out.length)


def _size(value: object, default: Length) -> Length:
    if value is None:
        return default
    if isinstance(value, fx.Node):
        return length_of(value.meta["val"])
    if isinstance(value, int) and value >= sys.maxsize // 2:
        return default
    return length_of(value)


def _start(value: object, length: Length) -> Length:
    start = _size(value, 0)
    if not isinstance(start, int) or start >= 0:
        return start
    from_end = minus(length, -start)
    return max(from_end, 0) if isinstance(from_end, int) else from_end


@rule("slice", "slice_copy")
def slice_(call: Call) -> None:
    """Rows ``start .. end`` of one dim, perhaps one of every ``step``."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim", 0))
    call.link_others(operand, dim)
    length = call.dims(operand)[dim].length
    if same_length(length, call.out[dim].length):
        call.link(operand, dim, dim)
    elif call.get("step", 1) != 1:
        _strided(call, operand, dim)
    else:
        read_range(call, operand, dim, _start(call.get("start"), length), call.out[dim])


def _strided(call: Call, operand: fx.Node, dim: int) -> None:
    """One row of every ``step``: a choice along the inner factor of a dim that is their product."""
    start, step = call.get("start") or 0, call.get("step")
    if isinstance(start, int) and 0 <= start < step:
        inner = window_factor(call, operand, dim, call.out[dim], step)
        if inner is not None:
            call.mix(operand, dim, f"reads one of every {step} rows", inner)
            return
    call.move(operand, dim, dim, "reads every n-th row")


@rule("narrow", "narrow_copy")
def narrow(call: Call) -> None:
    """Rows ``start .. start + length`` of one dim."""
    operand, start = call.tensors()[0], call.get("start")
    dim = call.wrap(operand, call.get("dim"))
    call.link_others(operand, dim)
    if call.is_tensor(start):
        call.move(operand, dim, dim, "reads a range that starts at a run-time row")
        return
    begin = _start(start, call.dims(operand)[dim].length)
    read_range(call, operand, dim, begin, call.out[dim])


@rule("select", "select_copy")
def select(call: Call) -> None:
    """One row of one dim."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim"))
    for other in range(len(call.dims(operand))):
        if other != dim:
            call.link(operand, other, other - (other > dim))
    call.pick(operand, dim, _start(call.get("index"), call.dims(operand)[dim].length), 1)


SPLITS = """
split split_with_sizes chunk unsafe_split unsafe_chunk tensor_split split_copy
"""


@rule(*SPLITS.split())
def split(call: Call) -> None:
    """Consecutive ranges of rows of one dim."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim", 0))
    start: Length = 0
    for which, axes in enumerate(call.outs):
        call.link_others(operand, dim, which)
        if same_length(call.dims(operand)[dim].length, axes[dim].length):
            call.link(operand, dim, dim, which)
        else:
            read_range(call, operand, dim, start, axes[dim])
        start = total([start, axes[dim].length])


@rule("unbind", "unbind_copy")
def unbind(call: Call) -> None:
    """Every row of one dim, each as an output."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim", 0))
    for which in range(len(call.outs)):
        for other in range(len(call.dims(operand))):
            if other != dim:
                call.link(operand, other, other - (other > dim), which)
        call.pick(operand, dim, which, 1)


@rule("slice_scatter", "select_scatter")
def overwrite_range(call: Call) -> None:
    """A range of rows is overwritten: the base passes, the new rows are placed."""
    base, new = call.get("self"), call.get("src")
    dim = call.get("dim", 0) % len(call.out)
    call.broadcast(base, call.out)
    if len(call.dims(new)) < len(call.out):
        for own in range(len(call.dims(new))):
            call.link(new, own, own + (own >= dim))
    else:
        call.link_others(new, dim)
        if same_length(call.dims(new)[dim].length, call.out[dim].length):
            call.link(new, dim, dim)
            return
        call.move(new, dim, dim, "writes rows into a range")
    call.mix(base, dim, "overwrites rows at a fixed position")
