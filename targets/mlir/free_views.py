"""Free views: a change of shape with a free size goes through one dim.

torch-mlir pairs the dims of the two shapes by their numbers, and guesses where these are not known:
it takes (?, ?, 128) to (?, 128) as if the second dim were one row, and what is read behind that row
is other memory.  From and to a single dim nothing is left to guess.

Sound: both views keep the elements in row-major order.  Done on the graph, not by a decomposition:
tracing would ask of free sizes which strides can be viewed.  A graph for MLIR has no strides.
"""

from __future__ import annotations

import math

import torch
from torch import fx

aten = torch.ops.aten


def through_one_dim(graph: fx.Graph) -> int:
    """Put a view to one dim in front of every view with a free size, in place; return how many."""
    found = 0
    for node in list(graph.find_nodes(op="call_function", target=aten.view.default)):
        source = node.args[0]
        before, after = source.meta["val"], node.meta["val"]
        sizes = (*before.shape, *after.shape)
        if before.dim() < 2 or after.dim() < 2 or all(isinstance(size, int) for size in sizes):
            continue
        with graph.inserting_before(node):
            flat = graph.call_function(aten.view.default, (source, [-1]))
        flat.meta["val"] = before.new_empty([math.prod(before.shape)])
        flat.meta["stack_trace"] = node.stack_trace
        node.update_arg(0, flat)
        found += 1
    return found
