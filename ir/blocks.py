"""Blocks: the sub-blocks of a layer, what each reads and what it adds to the stream.

A layer of a residual stream is a chain of skip connections ``join = skip + f(skip)``: around the
attention, around the feed-forward part, or around more.  What f gives is the block's output; its
input is what the first product with learned weights in f reads, so what a norm in front of them
made of the stream.  No name is read.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from tokopt.ir.dependence import Dependence
from tokopt.ir.dims import Dims, operator_name
from tokopt.ir.layers import Stack
from tokopt.ir.lengths import is_one

PRODUCTS = frozenset(f"aten::{name}" for name in ("linear", "mm", "addmm", "matmul", "einsum"))


@dataclass(frozen=True)
class SubBlock:
    """One sub-block: both values are laid out like the stream."""

    input: fx.Node
    output: fx.Node


def find_blocks(
    stack: Stack, dims: Dims, dependence: Dependence
) -> tuple[tuple[SubBlock, ...], ...]:
    """Return the sub-blocks of each layer of a stack, in order; a layer that tells none has none.

    To be asked of a graph as it was analysed, before anything in it is replaced.
    """
    joins = [j for j in dependence.skip_connections() if j[0] in dims.axes]
    ends = [layer.entry for layer in stack.layers[1:]] + [stack.end]
    found: list[tuple[SubBlock, ...]] = []
    for layer, end in zip(stack.layers, ends, strict=True):
        blocks: list[SubBlock | None] = []
        now = layer.entry
        for join, skip, branch in joins:
            if skip is now and now is not end:
                blocks.append(_block(skip, branch, dims, dependence))
                now = join
        whole = [block for block in blocks if block is not None]
        found.append(tuple(whole) if len(whole) == len(blocks) and now is end else ())
    return tuple(found)


def _block(skip: fx.Node, branch: fx.Node, dims: Dims, dependence: Dependence) -> SubBlock | None:
    """Return the block between a stream value and what is added to it."""
    order = list(dependence.order)
    for node in order[dependence.order[skip] + 1 : dependence.order[branch] + 1]:
        between = dependence.reaches(skip, node) and dependence.reaches(node, branch)
        if not between or operator_name(node) not in PRODUCTS:
            continue
        given = [n for n in node.all_input_nodes if n not in dims.learned]
        if len(given) == 1 < len(node.all_input_nodes):
            alike = _alike(given[0], skip, dims) and _alike(branch, skip, dims)
            return SubBlock(given[0], branch) if alike else None
    return None


def _alike(node: fx.Node, stream: fx.Node, dims: Dims) -> bool:
    """Return whether a value is laid out like the stream."""
    ours, theirs = dims.axes.get(node, []), dims.axes[stream]
    return len(ours) == len(theirs) and all(
        a.root is b.root or (is_one(a.length) and is_one(b.length))
        for a, b in zip(ours[:-1], theirs[:-1], strict=True)
    )
