"""Reading and writing rows: slices, joins, indexing, scattering, sorting, pooling."""

from __future__ import annotations

import sys

from torch import fx

from tokopt.ir.axis import Axis, align_parts, sliced, unify
from tokopt.ir.call import Call
from tokopt.ir.lengths import Length, length_of, minus, same_length, total
from tokopt.ir.rules import rule


def _others(call: Call, operand: fx.Node, dim: int, which: int = 0) -> None:
    for other in range(len(call.dims(operand))):
        if other != dim:
            call.link(operand, other, other, which)


def _read(call: Call, operand: fx.Node, dim: int, start: Length, out: Axis) -> None:
    """State that ``out`` is the rows from ``start`` of an operand's dim."""
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
    negative = isinstance(start, int) and start < 0
    return minus(length, -start) if negative else start


@rule("slice", "slice_copy")
def slice_(call: Call) -> None:
    """Rows ``start .. end`` of one dim; a stride moves rows."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim", 0))
    _others(call, operand, dim)
    length = call.dims(operand)[dim].length
    if same_length(length, call.out[dim].length):
        call.link(operand, dim, dim)
    elif call.get("step", 1) != 1:
        call.move(operand, dim, dim, "reads every n-th row")
    else:
        _read(call, operand, dim, _start(call.get("start"), length), call.out[dim])


@rule("narrow", "narrow_copy")
def narrow(call: Call) -> None:
    """Rows ``start .. start + length`` of one dim."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim"))
    _others(call, operand, dim)
    start = _start(call.get("start"), call.dims(operand)[dim].length)
    _read(call, operand, dim, start, call.out[dim])


@rule("select", "select_copy")
def select(call: Call) -> None:
    """One row of one dim."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim"))
    rank = len(call.dims(operand))
    for other in range(rank):
        if other != dim:
            call.link(operand, other, other - (other > dim))
    call.pick(operand, dim, _start(call.get("index"), call.dims(operand)[dim].length), 1)


@rule(
    "split",
    "split_with_sizes",
    "chunk",
    "unsafe_split",
    "unsafe_chunk",
    "tensor_split",
    "split_copy",
)
def split(call: Call) -> None:
    """Consecutive ranges of rows of one dim."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim", 0))
    start: Length = 0
    for which, axes in enumerate(call.outs):
        _others(call, operand, dim, which)
        if same_length(call.dims(operand)[dim].length, axes[dim].length):
            call.link(operand, dim, dim, which)
        else:
            _read(call, operand, dim, start, axes[dim])
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


@rule("cat", "concat", "concatenate")
def cat(call: Call) -> None:
    """Rows one after the other; rows from parameters alone beside others are marked learned."""
    operands = [n for n in call.get("tensors") if call.dims(n) and not _is_empty(call, n)]
    dim = call.get("dim", 0) % len(call.out)
    beside_data = any(n not in call.learned for n in operands)
    for operand in operands:
        _others(call, operand, dim)
        if beside_data and operand in call.learned:
            call.dims(operand)[dim].root.learned = True
    joined = [call.dims(n)[dim] for n in operands]
    if len(joined) == 1:
        unify(joined[0], call.out[dim])
    elif call.out[dim].root.parts:
        align_parts(joined, [call.out[dim]])
    else:
        call.out[dim].root.parts = joined


def _is_empty(call: Call, node: fx.Node) -> bool:
    return any(isinstance(a.length, int) and a.length == 0 for a in call.dims(node))


@rule("stack")
def stack(call: Call) -> None:
    """A new dim counts the operands."""
    dim = call.get("dim", 0) % len(call.out)
    for operand in call.tensors():
        for d in range(len(call.dims(operand))):
            call.link(operand, d, d + (d >= dim))


@rule("slice_scatter", "select_scatter", "copy_to")
def overwrite_range(call: Call) -> None:
    """A range of rows is overwritten: the base passes, the new rows are placed."""
    base, new = call.tensors()[:2]
    dim = call.get("dim", 0) % len(call.out)
    call.broadcast(base, call.out)
    if len(call.dims(new)) == len(call.out):
        _others(call, new, dim)
        if same_length(call.dims(new)[dim].length, call.out[dim].length):
            call.link(new, dim, dim)
            return
        call.move(new, dim, dim, "writes rows into a range")
    call.mix(base, dim, "overwrites rows at a fixed position")


@rule("index", "_unsafe_index")
def index(call: Call) -> None:
    """Advanced indexing: indexed dims give their rows, in another order, to the index's dims."""
    operand = call.tensors()[0]
    indices = list(call.get("indices"))
    given = [d for d, i in enumerate(indices) if i is not None]
    rank = len(call.dims(operand))
    index_rank = max((len(call.dims(indices[d])) for d in given), default=0)
    adjacent = given == list(range(given[0], given[-1] + 1)) if given else True
    at = given[0] if given and adjacent else 0
    out = 0
    placed = {}
    for dim in range(rank):
        if out == at and given and (not adjacent or dim == given[0]):
            out += index_rank
        if dim not in given:
            placed[dim] = out
            out += 1
    if out != len(call.out) and not (given and at == out and out + index_rank == len(call.out)):
        for dim in range(rank):
            call.move(operand, dim, None, "selects rows by a run-time mask")
        return
    for dim, position in placed.items():
        call.link(operand, dim, position)
    for dim in given:
        single = at if len(given) == 1 and index_rank == 1 else None
        call.move(operand, dim, single, "reads rows by an index")
        call.broadcast(indices[dim], call.out[at : at + index_rank])


@rule("index_select")
def index_select(call: Call) -> None:
    """Rows of one dim in the order of an index."""
    operand, chosen = call.tensors()[:2]
    dim = call.wrap(operand, call.get("dim"))
    _others(call, operand, dim)
    call.broadcast_one(chosen, 0, call.out[dim])
    call.move(operand, dim, dim, "reads rows by an index")


@rule("gather", "take_along_dim")
def gather(call: Call) -> None:
    """Rows of one dim by an index of the output's shape."""
    operand, chosen = call.tensors()[:2]
    call.broadcast(chosen, call.out)
    dim = call.wrap(operand, call.get("dim", 0))
    for other in range(len(call.dims(operand))):
        if other != dim:
            call.broadcast_one(operand, other, call.out[other])
    call.move(operand, dim, dim, "reads rows by an index")


@rule("embedding")
def embedding(call: Call) -> None:
    """Each id becomes a row of the table."""
    table, ids = call.get("weight"), call.get("indices")
    for dim in range(len(call.dims(ids))):
        call.link(ids, dim, dim)
    call.link(table, 1, len(call.out) - 1)
    call.move(table, 0, None, "is a table read by ids")


SCATTER = """
index_put _index_put_impl index_copy index_add index_fill scatter scatter_add scatter_reduce
index_reduce _unsafe_index_put masked_scatter
"""


@rule(*SCATTER.split())
def scatter(call: Call) -> None:
    """The base passes; the other operands' rows are placed in it by run-time positions."""
    base, *others = call.tensors()
    call.broadcast(base, call.out)
    mask = call.get("mask")
    if call.is_tensor(mask):
        call.broadcast(mask, call.out)
    for operand in others:
        for dim in range(len(call.dims(operand)) if operand is not mask else 0):
            call.move(operand, dim, None, "is written to run-time positions")


@rule("sort", "argsort", "topk", "msort", "kthvalue")
def sort(call: Call) -> None:
    """One dim's rows are put in another order; the others pass."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim", -1))
    for which in range(len(call.outs)):
        if len(call.outs[which]) == len(call.dims(operand)):
            _others(call, operand, dim, which)
    call.move(operand, dim, dim, "sorts rows")


POOL = """
avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool2d_with_indices adaptive_avg_pool1d
adaptive_avg_pool2d _adaptive_avg_pool2d adaptive_max_pool2d upsample_nearest2d im2col
upsample_bilinear2d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa unfold
pixel_shuffle pixel_unshuffle grid_sampler grid_sampler_2d upsample_nearest1d upsample_linear1d
col2im
"""


@rule(*POOL.split())
def pool(call: Call) -> None:
    """Neighbouring rows are combined; dims of equal size before them pass."""
    operand = call.tensors()[0]
    dims = call.dims(operand)
    for dim in range(len(dims)):
        same = dim < len(call.out) and same_length(dims[dim].length, call.out[dim].length)
        if same and dim < len(dims) - 1 and dim < 2:
            call.link(operand, dim, dim)
        else:
            call.mix(operand, dim, "combines neighbouring rows")


@rule("one_hot")
def one_hot(call: Call) -> None:
    """Each id becomes a new dim."""
    operand = call.tensors()[0]
    for dim in range(len(call.dims(operand))):
        call.link(operand, dim, dim)


@rule("meshgrid")
def meshgrid(call: Call) -> None:
    """Operand i runs along dim i of every output (dims 0 and 1 swapped for ``xy``)."""
    order = list(range(len(call.tensors())))
    if call.get("indexing") == "xy" and len(order) > 1:
        order[0], order[1] = 1, 0
    for which in range(len(call.outs)):
        for i, operand in enumerate(call.tensors()):
            if call.dims(operand):
                call.link(operand, 0, order[i], which)


@rule("nonzero", "masked_select", "unique_consecutive", "_unique2", "where_indices")
def data_dependent(call: Call) -> None:
    """Rows are chosen at run time."""
    for operand in call.tensors():
        for dim in range(len(call.dims(operand))):
            call.move(operand, dim, None, "chooses rows at run time")


@rule("diff")
def diff(call: Call) -> None:
    """Neighbouring rows are subtracted."""
    operand = call.tensors()[0]
    dim = call.wrap(operand, call.get("dim", -1))
    _others(call, operand, dim)
    call.mix(operand, dim, "subtracts neighbouring rows")


FACTORY = """
arange zeros ones full empty scalar_tensor linspace new_zeros new_ones new_full new_empty eye
tensor rand randn lift_fresh_constant empty_strided new_empty_strided empty_permuted tril_indices
triu_indices
"""


@rule(*FACTORY.split())
def factory(call: Call) -> None:
    """No operand's rows are read: a tensor operand only lends dtype and device."""


@rule(
    "item",
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "_is_all_true",
    "_assert_async",
    "_assert_scalar",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
    "sym_size",
    "sym_numel",
    "sym_storage_offset",
    "sym_stride",
    "_is_any_true",
)
def scalar(call: Call) -> None:
    """A scalar is read from a tensor, or a size."""
    for operand in call.tensors():
        for dim in range(len(call.dims(operand))):
            call.fold(operand, dim)


FACTORIES = frozenset(f"aten::{name}" for name in FACTORY.split())
"""Operators whose output does not depend on any operand's data or shape."""
