"""Entries read or written at positions of one dim that an index of their shape says.

Positions along a dim that counts rows are positions of rows: refused where they were computed from
dropped ones.  Along any other dim (experts of a router, classes) each row has positions of its own,
and those of a dropped row move nothing of the others.
"""

from __future__ import annotations

from typing import Any

from tokopt.passes.oracle.dead import bury, either
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
