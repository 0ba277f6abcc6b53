"""Views and rearrangements: regrouping, permuting, stretching, repeating, padding."""

from __future__ import annotations

from tokopt.ir.axis import Axis, align_factors, align_parts, unify
from tokopt.ir.call import Call, dim_list
from tokopt.ir.lengths import is_one, length_of
from tokopt.ir.rules import rule

REGROUP = """
view reshape _unsafe_view _reshape_alias flatten unflatten unsqueeze squeeze view_copy
squeeze_copy unsqueeze_copy view_as reshape_as
"""


@rule(*REGROUP.split())
def regroup(call: Call) -> None:
    """Same rows in the same order under other dims: axes are products of common factors."""
    operand, shown = call.tensors()[0], call.get("other")
    aligned = align_factors(call.dims(operand), call.out)
    if call.is_tensor(shown) and shown is not operand:
        for dim in range(len(call.dims(shown))):
            if aligned:
                call.link(shown, dim, dim)
            else:
                call.mix(shown, dim, "lends its sizes to rows that are regrouped")
    if aligned:
        return
    for dim in range(len(call.dims(operand))):
        if not any(call.dims(operand)[dim].root is out.root for out in call.out):
            call.move(operand, dim, None, "regroups rows across dims")


@rule("expand", "expand_copy", "broadcast_to")
def expand(call: Call) -> None:
    """Size-1 dims are stretched; the others pass."""
    operand = call.tensors()[0]
    call.broadcast(operand, call.out)
    new = len(call.out) - len(call.dims(operand))
    for out in range(len(call.out)):
        if out < new or is_one(call.dims(operand)[out - new].length):
            call.repeat(out)


@rule("permute", "permute_copy")
def permute(call: Call) -> None:
    """Output dim i is operand dim ``dims[i]``."""
    operand = call.tensors()[0]
    for out, dim in enumerate(call.get("dims")):
        call.link(operand, call.wrap(operand, dim), out)


@rule("transpose", "transpose_copy", "swapaxes", "t", "t_copy", "mT", "adjoint")
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


@rule("numpy_T")
def reverse(call: Call) -> None:
    """All dims in reverse."""
    operand = call.tensors()[0]
    for dim in range(len(call.out)):
        call.link(operand, dim, len(call.out) - 1 - dim)


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
        if call.is_tensor(count) and count is not operand:
            call.mix(count, 0, "says how often each row is repeated")
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


@rule("roll", "flip")
def roll(call: Call) -> None:
    """Rows are permuted by a constant permutation."""
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    moved = dim_list(call.get("dims"), rank)  # none given: rolled as one flat dim
    for dim in range(rank):
        if dim in moved:
            call.move(operand, dim, dim, "permutes rows")
        else:
            call.link(operand, dim, dim)


@rule("rot90")
def rot90(call: Call) -> None:
    """Quarter turns of a plane: two dims change places when odd, rows are reversed."""
    operand = call.tensors()[0]
    rank = len(call.dims(operand))
    plane = [d % rank for d in call.get("dims", [0, 1])]
    for dim in range(rank):
        if dim not in plane:
            call.link(operand, dim, dim)
        else:
            turned = plane[1 - plane.index(dim)] if call.get("k", 1) % 2 else dim
            call.move(operand, dim, turned, "permutes rows")
