"""Reading rows by an index: advanced indexing, gather, tables, run-time choices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from tokopt.ir.call import Call
from tokopt.ir.lengths import is_one, same_length
from tokopt.ir.rules import rule
from tokopt.ir.rules.ranges import read_range


@dataclass(frozen=True)
class Indexed:
    """How ``x[i, None, j]`` is laid out, as numpy has it.

    ``kept`` maps dims of x to dims of the result; ``given`` has each index with the dims of x it
    reads (a mask as many as it has); the indices' own ``width`` dims lie at ``at``.
    """

    kept: dict[int, int]
    given: list[tuple[fx.Node, list[int]]]
    at: int
    width: int

    @property
    def rank(self) -> int:
        """Rank of the result."""
        return len(self.kept) + self.width


def indexed(call: Call, operand: fx.Node, indices: Sequence[Any]) -> Indexed:
    """Return the layout of an operand indexed by tensors or None, one per dim from the first."""
    given: list[tuple[fx.Node, list[int]]] = []
    dim = 0
    for index in indices:
        step = 1 if index is None or not is_mask(index) else len(call.dims(index))
        if index is not None:
            given.append((index, list(range(dim, dim + step))))
        dim += step
    read = [d for _, dims in given for d in dims]
    width = max((1 if is_mask(i) else len(call.dims(i)) for i, _ in given), default=0)
    adjacent = not read or read == list(range(read[0], read[-1] + 1))
    at = read[0] if read and adjacent else 0
    left = [d for d in range(len(call.dims(operand))) if d not in read]
    kept = {d: i if i < at else i + width for i, d in enumerate(left)}
    return Indexed(kept, given, at, width)


def is_mask(index: fx.Node) -> bool:
    """Return whether an index says for each row whether it is read."""
    return index.meta["val"].dtype in (torch.bool, torch.uint8)


@rule("index", "_unsafe_index")
def index(call: Call) -> None:
    """Advanced indexing: indexed dims give their rows, in another order, to the index's dims."""
    operand = call.get("self")
    found = indexed(call, operand, call.get("indices"))
    for dim, position in found.kept.items():
        call.link(operand, dim, position)
    for chosen, dims in found.given:
        if is_mask(chosen):
            for own, dim in enumerate(dims):
                call.move(operand, dim, None, "selects rows by a run-time mask")
                call.move(chosen, own, None, "says which rows are selected")
        else:
            single = found.at if len(found.given) == 1 and found.width == 1 else None
            call.move(operand, dims[0], single, "reads rows by an index")
            call.broadcast(chosen, call.out[found.at : found.at + found.width])


@rule("index_select")
def index_select(call: Call) -> None:
    """Rows of one dim in the order of an index."""
    operand, chosen = call.get("self"), call.get("index")
    dim = call.wrap(operand, call.get("dim"))
    call.link_others(operand, dim)
    if call.dims(chosen) and call.out:
        call.broadcast_one(chosen, 0, call.out[dim])
    call.move(operand, dim, dim, "reads rows by an index")


@rule("gather", "take_along_dim")
def gather(call: Call) -> None:
    """Rows of one dim by an index of the output's shape; of other dims its first rows are read."""
    operand = call.get("self")
    chosen = call.get("index") or call.get("indices")
    call.broadcast(chosen, call.out)
    if call.get("dim") is None:
        for dim in range(len(call.dims(operand))):
            call.move(operand, dim, None, "reads entries by an index")
        return
    dim = call.wrap(operand, call.get("dim"))
    for other in range(len(call.dims(operand))):
        if other != dim:
            _link_first_rows(call, operand, other)
    call.move(operand, dim, dim, "reads rows by an index")


def _link_first_rows(call: Call, operand: fx.Node, dim: int) -> None:
    own, out = call.dims(operand)[dim], call.out[dim]
    if same_length(own.length, out.length):
        call.link(operand, dim, dim)
    elif not is_one(own.length):
        read_range(call, operand, dim, 0, out)


@rule("embedding")
def embedding(call: Call) -> None:
    """Each id becomes a row of the table."""
    table, ids = call.get("weight"), call.get("indices")
    for dim in range(len(call.dims(ids))):
        call.link(ids, dim, dim)
    call.link(table, 1, len(call.out) - 1)
    call.move(table, 0, None, "is a table read by ids")


@rule("one_hot")
def one_hot(call: Call) -> None:
    """Each id becomes a new dim."""
    operand = call.tensors()[0]
    for dim in range(len(call.dims(operand))):
        call.link(operand, dim, dim)


@rule("nonzero", "masked_select", "unique_consecutive", "_unique2")
def data_dependent(call: Call) -> None:
    """Rows are chosen at run time."""
    for operand in call.tensors():
        for dim in range(len(call.dims(operand))):
            call.move(operand, dim, None, "chooses rows at run time")
