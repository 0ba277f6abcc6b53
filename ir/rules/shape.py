"""Views and rearrangements: regrouping, permuting, stretching, repeating, padding."""

from __future__ import annotations

from tokopt.ir.axis import Axis, align_factors, align_parts, unify
from tokopt.ir.call import Call
from tokopt.ir.lengths import is_one, length_of
from tokopt.ir.rules import rule

REGROUP = """
view reshape _unsafe_view _reshape_alias flatten unflatten unsqueeze squeeze view_copy
squeeze_copy unsqueeze_copy view_as reshape_as
"""


@rule(*REGROUP.split())
def regroup(call: Call) -> None:
    """Same rows in the same order under other dims: axes are products of common factors."""
    operand = call.tensors()[0]
    if align_factors(call.dims(operand), call.out):
        return
    for dim in range(len(call.dims(operand))):
        if not any(call.dims(operand)[dim].root is out.root for out in call.out):
            call.move(operand, dim, None, "regroups rows across dims")


@rule("expand", "expand_copy", "broadcast_to")
def expand(call: Call) -> None:
    """Size-1 dims are stretched; the others pass."""
    call.broadcast(call.tensors()[0], call.out)


@rule("permute", "permute_copy")
def permute(call: Call) -> None:
    """Output dim i is operand dim ``dims[i]``."""
    operand = call.tensors()[0]
    for out, dim in enumerate(call.get("dims")):
        call.link(operand, call.wrap(operand, dim), out)


@rule("transpose", "transpose_copy", "swapaxes", "t", "t_copy", "mT", "numpy_T", "adjoint")
def transpose(call: Call) -> None:
    """Two dims change places (``t``, ``mT``: the last two)."""
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    order = list(range(rank))
    if rank >= 2:
        a = call.get("dim0", call.get("axis0", -2)) % rank
        b = call.get("dim1", call.get("axis1", -1)) % rank
        order[a], order[b] = order[b], order[a]
    for out, dim in enumerate(order):
        call.link(operand, dim, out)


@rule("movedim", "moveaxis")
def movedim(call: Call) -> None:
    """Named dims move, the rest keep their order."""
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    lists = [call.get(name) for name in ("source", "destination")]
    source, target = ([v] if isinstance(v, int) else list(v) for v in lists)
    placed = {d % rank: s % rank for s, d in zip(source, target, strict=True)}
    rest = iter([d for d in range(rank) if d not in placed.values()])
    for out in range(rank):
        call.link(operand, placed[out] if out in placed else next(rest), out)


@rule("repeat", "tile")
def repeat(call: Call) -> None:
    """A dim repeated r times is r copies, outer, of the dim."""
    operand = call.tensors()[0]
    counts = list(call.get("repeats", call.get("dims")))
    dims = call.dims(operand)
    for back in range(1, len(dims) + 1):
        count = counts[-back] if back <= len(counts) else 1
        _repeated(call, dims[-back], call.out[-back], count, outer=True)


@rule("repeat_interleave")
def repeat_interleave(call: Call) -> None:
    """Each row r times in a row: r copies, inner.  Data-dependent counts move the rows."""
    operand = call.tensors()[0]
    dim, count = call.get("dim"), call.get("repeats")
    rank = len(call.dims(operand))
    if dim is None or call.is_tensor(count) or len(call.out) != rank:
        for d in range(rank):
            call.move(operand, d, None, "repeat_interleave repeats rows by run-time counts")
        return
    for d in range(rank):
        if d == dim % rank:
            _repeated(call, call.dims(operand)[d], call.out[d], count, outer=False)
        else:
            call.link(operand, d, d)


def _repeated(call: Call, axis: Axis, out: Axis, count: object, *, outer: bool) -> None:
    copies = Axis(length_of(count) if isinstance(count, int) else _size(call, count))
    if is_one(copies.length):
        unify(axis, out)
    else:
        align_factors([copies, axis] if outer else [axis, copies], [out])


def _size(call: Call, count: object) -> int:
    value = getattr(count, "meta", {}).get("val", count)
    return length_of(value)


@rule("constant_pad_nd", "pad")
def pad(call: Call) -> None:
    """Constant rows are put around a dim; other modes read rows by position."""
    operand = call.tensors()[0]
    amounts = list(call.get("pad"))
    constant = call.get("mode", "constant") == "constant"
    dims = call.dims(operand)
    for back in range(1, len(dims) + 1):
        pair = amounts[2 * back - 2 : 2 * back] or [0, 0]
        dim = len(dims) - back
        if all(isinstance(a, int) and a == 0 for a in pair):
            call.link(operand, dim, dim)
        elif constant and all(isinstance(a, int) and a >= 0 for a in pair):
            around = [Axis(pair[0]), dims[dim], Axis(pair[1])]
            align_parts([a for a in around if a.root.length != 0], [call.out[dim]])
            if not call.out[dim].root.parts:
                call.mix(operand, dim, "pads rows")
        else:
            call.mix(operand, dim, "pads or crops rows by position")


@rule("roll", "flip", "rot90")
def roll(call: Call) -> None:
    """Rows are permuted by a constant permutation."""
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    moved = call.get("dims") or list(range(rank))
    moved = [d % rank for d in ([moved] if isinstance(moved, int) else moved)]
    for dim in range(rank):
        if dim in moved:
            call.move(operand, dim, dim, "permutes rows")
        else:
            call.link(operand, dim, dim)
