"""Stacked: what a call on one piece is on all of them, stacked along a new first dim.

One rule per operator; operators that treat every element alone need none.  A rule gets the graph
(at the insertion point), the first piece's call and the stacked value of each operand (the operand
itself where all pieces read it), and inserts the call on ``[n, ...]``; None where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from tokopt.ir.lengths import is_one
from tokopt.ir.trace import call

aten = torch.ops.aten
Given = Mapping[fx.Node, fx.Node]
Rule = Callable[[fx.Graph, fx.Node, Given], "fx.Node | None"]

BATCHED = (
    "aten::scaled_dot_product_attention aten::im2col aten::conv2d aten::avg_pool2d "
    "aten::adaptive_avg_pool2d aten::max_pool2d aten::pixel_shuffle aten::pixel_unshuffle"
).split()
"""Operators whose operands of four dims are batch items along the first."""

SHAPES = tuple(
    f"aten::{name}" for name in "reshape view flatten unflatten squeeze unsqueeze".split()
)
"""Operators that say what shape the same elements have."""

COMBINE = frozenset({*BATCHED, "aten::softmax", "aten::_softmax"})
"""Operators that read several rows at once."""


def transposed(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node:
    """Two dims exchanged."""
    value, *dims = node.args
    assert isinstance(value, fx.Node)
    moved = [_behind(dim, value.meta["val"].dim()) for dim in dims]
    return call(graph, aten.transpose.int, given[value], *moved)


def permuted(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node:
    """Dims in another order."""
    value: Any = node.args[0]
    order: Any = node.args[1]
    moved = [_behind(dim, value.meta["val"].dim()) for dim in order]
    return call(graph, aten.permute.default, given[value], [0, *moved])


def turned(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node:
    """``t``: a matrix with its dims exchanged."""
    (value,) = node.all_input_nodes
    return call(graph, aten.transpose.int, given[value], 1, 2)


def reshaped(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node | None:
    """Elements in another shape."""
    (value,) = node.all_input_nodes
    sizes = list(node.meta["val"].shape)
    count = given[value].meta["val"].shape[0]
    literal = [size if isinstance(size, int) else -1 for size in sizes]
    return call(graph, aten.reshape.default, given[value], [count, *literal])


def joined(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node:
    """Values behind one another within a piece; what all pieces share is repeated."""
    parts: Any = node.args[0]
    dim: Any = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    count = next(given[part].meta["val"].shape[0] for part in parts if given[part] is not part)
    every = [
        given[part] if given[part] is not part else _repeated(graph, part, count) for part in parts
    ]
    return call(graph, node.target, every, _behind(dim, parts[0].meta["val"].dim()))


def _repeated(graph: fx.Graph, value: fx.Node, count: int) -> fx.Node:
    alone = call(graph, aten.unsqueeze.default, value, 0)
    return call(graph, aten.expand.default, alone, [count, *[-1] * value.meta["val"].dim()])


def expanded(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node | None:
    """Dims of one row repeated; none is added in front."""
    (value,) = node.all_input_nodes
    sizes: Any = node.args[1]
    if len(sizes) != value.meta["val"].dim():
        return None
    return call(graph, node.target, given[value], [-1, *sizes])


def ranged(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node:
    """Rows of one dim: a slice, or one row."""
    value: Any = node.args[0]
    dim: Any = node.args[1] if len(node.args) > 1 else 0
    behind = _behind(dim, value.meta["val"].dim())
    return _like(graph, node, (given[value], behind, *node.args[2:]), node.kwargs)


def softmaxed(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node:
    """A softmax along one dim."""
    value, dim, *rest = node.args
    assert isinstance(value, fx.Node)
    behind = _behind(dim, value.meta["val"].dim())
    return _like(graph, node, (given[value], behind, *rest), node.kwargs)


def multiplied(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node | None:
    """A product of matrices; one operand may be common to all pieces."""
    one, other = node.args
    assert isinstance(one, fx.Node) and isinstance(other, fx.Node)
    if one.meta["val"].dim() != other.meta["val"].dim() or one.meta["val"].dim() < 2:
        return None
    return call(graph, aten.matmul.default, given[one], given[other])


def last_dims(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node | None:
    """A call on the last dims of its first operand, with weights that all pieces share."""
    first, *others = node.all_input_nodes
    if given[first] is first or any(given[other] is not other for other in others):
        return None
    return on_stacked(graph, node, given)


def batched(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node | None:
    """A call on batch items: ``[n, B, ...]`` is a batch of ``n * B``."""
    if node.meta["val"].dim() != 4 and node.target is not aten.im2col.default:
        return None
    items: dict[fx.Node, fx.Node] = {}
    for operand, stacked in given.items():
        shape = operand.meta["val"].shape
        if stacked is operand:
            items[operand] = operand
        elif len(shape) == 4 and all(isinstance(size, int) for size in shape[1:]):
            items[operand] = call(graph, aten.reshape.default, stacked, [-1, *shape[1:]])
        else:
            return None
    mask: Any = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    if isinstance(mask, fx.Node) and given[mask] is mask:  # it must not tell items apart
        shape = mask.meta["val"].shape
        if len(shape) == 4 and not is_one(shape[0]):
            return None
    out = on_stacked(graph, node, items)
    count = next(s.meta["val"].shape[0] for o, s in given.items() if s is not o)
    sizes = node.meta["val"].shape
    return call(graph, aten.reshape.default, out, [count, -1, *sizes[1:]])


def on_stacked(graph: fx.Graph, node: fx.Node, given: Given) -> fx.Node:
    """The same call on other operands."""
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), given.__getitem__)
    return _like(graph, node, args, kwargs)


def _like(graph: fx.Graph, node: fx.Node, args: Any, kwargs: Mapping[str, Any]) -> fx.Node:
    return call(graph, node.target, *args, **kwargs)


def _behind(dim: Any, rank: int) -> int:
    """Return where a dim is once there is another in front."""
    return int(dim) % rank + 1


STACKED: dict[str, Rule] = {
    "aten::transpose": transposed,
    "aten::permute": permuted,
    "aten::cat": joined,
    "aten::expand": expanded,
    "aten::slice": ranged,
    "aten::select": ranged,
    "aten::t": turned,
    "aten::softmax": softmaxed,
    "aten::_softmax": softmaxed,
    "aten::matmul": multiplied,
    "aten::bmm": multiplied,
    "aten::linear": last_dims,
    "aten::layer_norm": last_dims,
    "aten::rms_norm": last_dims,
    **dict.fromkeys(SHAPES, reshaped),
    **dict.fromkeys(("aten::contiguous", "aten::clone", "aten::to"), last_dims),
    **dict.fromkeys(BATCHED, batched),
}
"""Operator to rule."""
