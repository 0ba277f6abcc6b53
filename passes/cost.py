"""Cost: what the calls that stages insert cost, in operations and bytes, counted node by node.

The selector is charged for everything it adds: scores, choice, folding, and the gathers of the cut.
Operations: 2 for each multiply-accumulate of a product, 5 for each entry of a softmax, n log2 n
comparisons for a row of n that is sorted, one for each entry of the largest tensor of any other
call that computes; moves and views do none.  Bytes: what each call reads and writes, views nothing.
Fusing compilers move less; nothing is hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log2, prod
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload
from torch.export import ExportedProgram

from tokopt.ir.binding import bind
from tokopt.ir.dims import operator_name
from tokopt.ir.lengths import length_of
from tokopt.passes.macs import macs_of, shape_of
from tokopt.passes.oracle.sizes import Sizes

SOFTMAX = 5
SOFTMAXES = {"softmax", "_softmax", "log_softmax", "_log_softmax", "safe_softmax", "_safe_softmax"}
SORTS = {"sort", "topk", "argsort", "select"}
"""``tokopt::select`` is a sort; ``aten::select`` is a view and never asked."""
MOVES = {
    *("gather", "index_select", "index", "cat", "stack", "clone", "_to_copy", "to", "contiguous"),
    *("constant_pad_nd", "pad", "repeat", "repeat_interleave", "restore", "scatter", "flip"),
    *("copy", "lift_fresh_copy"),
}
"""Calls that compute no entry; they read as much as they write."""
FACTORIES = {
    *("arange", "full", "zeros", "ones", "empty", "full_like", "zeros_like", "ones_like", "eye"),
    *("new_zeros", "new_ones", "new_full", "scalar_tensor"),
}


@dataclass(frozen=True)
class Cost:
    """``flops`` operations and ``bytes`` read and written, in one run."""

    flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.bytes + other.bytes)

    def times(self, count: int) -> Cost:
        """Return the cost of so many runs."""
        return Cost(self.flops * count, self.bytes * count)


def stage_costs(
    exported: ExportedProgram,
    inserted: Sequence[frozenset[str]],
    inputs: Mapping[str, Tensor],
) -> tuple[Cost, ...]:
    """Return what each stage's calls cost, by the names of those each inserted (``Applied``).

    ``inputs`` give symbolic sizes their values.
    """
    sizes = Sizes(exported, bind(exported, inputs))
    return tuple(
        count_cost((n for n in exported.graph.nodes if n.name in names), sizes)
        for names in inserted
    )


def count_cost(nodes: Iterable[fx.Node], sizes: Sizes) -> Cost:
    """Return what calls cost; a loop costs its body at every step."""
    whole = Cost()
    for node in nodes:
        if node.target is torch.ops.higher_order.scan:
            given: Any = node.args
            body, _, (numbers, *_), _ = given
            owner: Any = node.graph.owning_module
            inner = count_cost(getattr(owner, str(body.target)).graph.nodes, sizes)
            whole += inner.times(shape_of(numbers, sizes)[0])
        else:
            whole += _cost(node, sizes)
    return whole


def _cost(node: fx.Node, sizes: Sizes) -> Cost:
    target = node.target
    if not isinstance(target, OpOverload) or _is_view(target):
        return Cost()
    name = operator_name(node).split("::")[-1]
    out, read = _tensors([node], sizes), _tensors(node.all_input_nodes, sizes)
    written = sum(entries * size for entries, size, _ in out)
    if name in FACTORIES or name in MOVES:
        return Cost(0, written if name in FACTORIES else 2 * written)
    largest = max((entries for entries, _, _ in (*out, *read)), default=0)
    flops = 2 * macs_of(node, lambda n: shape_of(n, sizes)) or largest
    if name in SOFTMAXES:
        flops = SOFTMAX * largest
    elif name == "attention_rows":
        flops += SOFTMAX * sum(entries for entries, _, _ in out)
    elif name in SORTS:
        (entries, _, row), *_ = read
        flops = entries * ceil(log2(max(row, 2)))
    return Cost(flops, written + sum(entries * size for entries, size, _ in read))


def _is_view(target: OpOverload) -> bool:
    """Return whether a call's result may be its operand, seen in another way."""
    returned = [r.alias_info for r in target._schema.returns]
    return any(alias is not None and not alias.is_write for alias in returned)


def _tensors(nodes: Iterable[fx.Node], sizes: Sizes) -> list[tuple[int, int, int]]:
    """Return entries, bytes of each, and the length of the last dim of every tensor."""
    found = []
    for node in nodes:
        value = node.meta.get("val")
        for one in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(one, Tensor):
                shape = [sizes.number(length_of(size)) for size in one.shape]
                found.append((prod(shape), one.element_size(), shape[-1] if shape else 1))
    return found
