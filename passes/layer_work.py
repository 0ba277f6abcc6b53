"""Layer work: operations and bytes of a program's products, layer by layer, counted from its graph.

What a layer does is what its exit depends on and its entry does not; what several layers share (the
angles of positions) is the first one's.  Operations are two for a multiply-accumulate; bytes are
those of the products' operands and results, each read and written once, as the roofline has it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod

from torch import Tensor, fx

from tokopt.ir.binding import bind
from tokopt.ir.facts import Facts
from tokopt.passes.macs import macs_of, shape_of
from tokopt.passes.oracle.sizes import Sizes

REST = "outside of layers"


@dataclass(frozen=True)
class LayerWork:
    """Of one layer of a stack, or of all that is in none (``depth`` None)."""

    role: str
    depth: int | None
    flops: int
    bytes: int


def work_by_layer(facts: Facts, inputs: Mapping[str, Tensor]) -> list[LayerWork]:
    """Return the work of one run; ``inputs`` by name give free sizes their values."""
    sizes = Sizes(facts.exported, bind(facts.exported, inputs))
    counted, found = set[fx.Node](), list[LayerWork]()
    for stack in facts.stacks:
        places = [layer.entry for layer in stack.stack.layers]
        before = _behind(places[0])
        for layer, end in zip(stack.stack.layers, [*places[1:], stack.stack.end], strict=True):
            own = _behind(end) - before - counted
            before |= own
            counted |= own
            found.append(LayerWork(stack.role, layer.depth, *_work(own, sizes)))
    rest = [node for node in facts.exported.graph.nodes if node not in counted]
    return [*found, LayerWork(REST, None, *_work(rest, sizes))]


def _behind(node: fx.Node) -> set[fx.Node]:
    """Return all that a value is computed of, and it."""
    found, queue = set[fx.Node](), [node]
    while queue:
        current = queue.pop()
        if current not in found:
            found.add(current)
            queue += current.all_input_nodes
    return found


def _work(nodes: Iterable[fx.Node], sizes: Sizes) -> tuple[int, int]:
    flops = moved = 0
    for node in nodes:
        macs = macs_of(node, lambda n: shape_of(n, sizes))
        if macs:
            flops += 2 * macs
            tensors = [n for n in (node, *node.all_input_nodes) if _is_tensor(n)]
            moved += sum(prod(shape_of(n, sizes)) * n.meta["val"].itemsize for n in tensors)
    return flops, moved


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)
