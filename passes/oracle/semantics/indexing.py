"""Entries read or written at positions of one dim that an index of their shape says.

Positions along a dim that counts rows are positions of rows: refused where they were computed from
dropped ones.  Along any other dim (experts of a router, classes) each row has positions of its own,
and those of a dropped row move nothing of the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import bare, bury, dead_entries, either, has_dead
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.movement import moved_masks, movement
from tokopt.passes.oracle.semantics.table import rule


@rule("gather", "scatter")
def along(call: Operation) -> Any:
    """Gather or scatter along a dim that does not count rows; as a movement else."""
    dead, dim = call.dead("index"), call.get("dim")
    if dead is None or call.counts_rows(call.node, dim):
        return movement(call)
    if call.get("reduce") is not None:
        raise call.refuse("rows are added up at run-time positions")
    if bool((dead.any(dim) != dead.all(dim)).any()):
        raise call.refuse("some of a row's positions were dropped, and others not")
    result, moved = call.run(), moved_masks(call)
    if call.name == "scatter":
        dead = dead.any(dim, keepdim=True)
        if any(a not in (1, b) for a, b in zip(dead.shape, result.shape, strict=True)):
            raise call.refuse("only some rows are written to")
    return bury(result, either(dead, moved))


@rule("index", "_unsafe_index")
def lookup(call: Operation) -> Any:
    """Look a constant's entries up (experts' weights by a router's choice); a movement else.

    What a dropped row looked up is dead.  Where that is, is looked up in a mask with one more
    entry along each indexed dim, the dead one.
    """
    table, indices = call.tensor("self"), call.given["indices"]
    if table is None or "self" not in call.constant or not has_dead(indices):
        return movement(call)
    if any(bare(i) is not None and bare(i).dtype is torch.bool for i in indices):
        raise call.refuse("a mask computed from rows says which entries are read")
    mask = torch.zeros([1] * table.ndim, dtype=torch.bool, device=table.device)
    chosen: list[Tensor | None] = []
    for dim, index in enumerate(indices):
        dead, given = dead_entries(index), bare(index)
        if given is None:
            chosen.append(None)
            continue
        size = table.shape[dim]
        spare = torch.arange(size + 1, device=table.device) == size
        mask = mask | spare.reshape([-1 if d == dim else 1 for d in range(table.ndim)])
        given = given % size
        chosen.append(given if dead is None else given.masked_fill(dead, size))
    shape = [max(own, size) for own, size in zip(mask.shape, table.shape, strict=True)]
    return bury(call.run(), call.run({"self": mask.expand(shape), "indices": chosen}))
