"""MACs: multiply-accumulates of a graph, counted node by node, and predicted for a plan.

The prediction replaces row counts in the *original* program: where a stage's rows are short, a
linear layer costs its rows, an attention its query rows times its key rows.  It knows nothing of
what the rewriter inserts, so counting a rewritten program against it says whether rows are really
gone or only masked; what the methods' scores cost is the difference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.axis import Axis, locate
from tokopt.ir.binding import bind
from tokopt.ir.dims import arguments_of, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.holes import Barrier
from tokopt.ir.lengths import length_of
from tokopt.ir.plan import Plan
from tokopt.ir.region import plan_region
from tokopt.passes.oracle.sizes import Sizes
from tokopt.passes.slow_path import inner_region, path_end

LEFT = {
    "aten::matmul": "self",
    "aten::mm": "self",
    "aten::bmm": "self",
    "aten::addmm": "mat1",
    "aten::baddbmm": "batch1",
}
"""Products ``[…, m, k] x [k, n]``, and the argument that holds the left factor."""

CONVOLUTIONS = {f"aten::{n}" for n in ("conv1d", "conv2d", "conv3d", "convolution")}
ATTENTION = "aten::scaled_dot_product_attention"
ATTENTION_ROWS, SEGMENTED = "tokopt::attention_rows", "tokopt::segmented_mean"
OWN = {ATTENTION_ROWS, SEGMENTED}
COUNTED = {*LEFT, *CONVOLUTIONS, *OWN, ATTENTION, "aten::linear", "aten::einsum"}

Shape = Callable[[fx.Node], Sequence[int]]


def count_macs(
    exported: ExportedProgram,
    inputs: Mapping[str, Tensor],
    without: AbstractSet[str] = frozenset(),
) -> int:
    """Return the multiply-accumulates of one run; ``inputs`` give symbolic sizes their values.

    Calls named in ``without`` are left out.
    """
    sizes = Sizes(exported, bind(exported, inputs))
    nodes = [node for node in exported.graph.nodes if node.name not in without]
    return _graph_macs(nodes, lambda n: shape_of(n, sizes))


def _graph_macs(nodes: Iterable[fx.Node], shape: Shape) -> int:
    """Return the multiply-accumulates of calls; a loop's are its body's at every step."""
    count = 0
    for node in nodes:
        if node.target is torch.ops.higher_order.scan:
            given: Any = node.args
            body, _, (numbers, *_), _ = given
            inner = getattr(node.graph.owning_module, body.target).graph
            count += shape(numbers)[0] * _graph_macs(inner.nodes, shape)
        else:
            count += macs_of(node, shape)
    return count


def predict_macs(facts: Facts, plan: Plan, inputs: Mapping[str, Tensor]) -> int:
    """Return what a plan should leave of the original's multiply-accumulates.

    Raises ``UnsupportedError`` where a stage of the plan is not legal.
    """
    shapes = predicted_shapes(facts, plan, inputs)
    return sum(macs_of(node, shapes(node)) for node in facts.exported.graph.nodes)


def predicted_shapes(
    facts: Facts, plan: Plan, inputs: Mapping[str, Tensor]
) -> Callable[[fx.Node], Shape]:
    """Return by call of the original what shapes its operands and results should have.

    Raises ``UnsupportedError`` where a stage of the plan is not legal.
    """
    sizes = Sizes(facts.exported, bind(facts.exported, inputs))
    cuts = _cuts(facts, plan, sizes)

    def shapes(node: fx.Node) -> Shape:
        mine = [cut for cut in cuts if node in cut.short]

        def shape(operand: fx.Node) -> list[int]:
            found = list(shape_of(operand, sizes))
            for cut in mine:  # in data order: the last one holds
                for dim, axis in enumerate(facts.dims.axes.get(operand, [])):
                    found[dim] = cut.size(axis, sizes, found[dim])
            return found

        return shape

    return shapes


@dataclass(frozen=True)
class _Cut:
    """From a value on ``kept`` rows of ``tokens`` are left, in the calls ``short``."""

    tokens: Axis
    kept: int
    short: frozenset[fx.Node]

    def size(self, axis: Axis, sizes: Sizes, before: int) -> int:
        """Return a dim's size behind the cut; as before where it does not hold the axis."""
        place = locate(axis, self.tokens)
        if place is None:
            return before
        count = self.kept
        for kind, children, index in reversed(place.path):
            others = [sizes.number(c.root.length) for i, c in enumerate(children) if i != index]
            count = count + sum(others) if kind == "+" else count * prod(others)
        return count


def _cuts(facts: Facts, plan: Plan, sizes: Sizes) -> list[_Cut]:
    """Return the cuts of a plan in data order: towers, the drop at the merge, the decoder."""
    staged = [(stage, *facts.find_site(stage.site)) for stage in plan.stages]
    staged.sort(key=lambda found: (found[1].merge is not None, found[2].depth))
    cuts: list[_Cut] = []
    consumer = facts.consumer
    for stage, stack, site in staged:
        if stage.until is not None:
            region = inner_region(facts, facts.exported.graph, site, path_end(facts, stage))
            kept = stage.keep // site.run
            cuts.append(_Cut(site.tokens, kept, frozenset(region.short)))
            continue
        if stack is consumer and stack.merge is not None:
            kept = _with_text(stack, stage.keep, sizes)
        else:
            kept = stage.keep // site.run
        cuts.append(_cut(facts, stack, site.value, site.tokens, kept, site.unit))
        fed = None if stack is consumer else facts.arrival(site, consumer)
        if fed is not None and fed.holes and consumer.boundary is not None:
            whole = _with_text(consumer, fed.rows(stage.keep // site.group), sizes)
            merged = consumer.stack.stream.root
            cuts.append(_cut(facts, consumer, consumer.boundary, merged, whole))
    return cuts


def _with_text(stack: TokenStack, visual: int, sizes: Sizes) -> int:
    rows = sizes.number(stack.stack.stream.root.length)
    return int(rows - sizes.number(stack.count) + visual)


def _cut(
    facts: Facts,
    stack: TokenStack,
    value: fx.Node,
    tokens: Axis,
    kept: int,
    unit: tuple[Axis, ...] = (),
) -> _Cut:
    graph, last = facts.exported.graph, stack.merge is not None
    region = plan_region(graph, facts.dims, value, tokens, unit=unit, last_row_kept=last)
    if isinstance(region, Barrier):
        raise UnsupportedError(f"rows cannot be dropped here: {region}")
    return _Cut(tokens, kept, frozenset(region.short))


def shape_of(node: fx.Node, sizes: Sizes) -> list[int]:
    """Return the sizes of a value in one run; none where it is no tensor."""
    value = node.meta["val"]
    shape = value.shape if isinstance(value, torch.Tensor) else ()
    return [int(sizes.number(length_of(size))) for size in shape]


def macs_of(node: fx.Node, shape: Shape) -> int:
    """Return the multiply-accumulates of one call; 0 where it multiplies no matrices."""
    if node.op != "call_function" or operator_name(node) not in COUNTED:
        return 0
    name, given, out = operator_name(node), arguments_of(node), shape(node)
    if name == "aten::linear":
        return prod(out) * shape(given["weight"])[-1]
    if name in CONVOLUTIONS:
        return prod(out) * prod(shape(given["weight"])[1:])
    if name == ATTENTION:
        query, value = shape(given["query"]), shape(given["value"])
        return prod(out[:-1]) * value[-2] * (query[-1] + value[-1])
    if name == ATTENTION_ROWS:
        return prod(out) * shape(given["query"])[-1]
    if name == SEGMENTED:  # as a product of matrices: what targets without the kernel run
        return prod(out) * shape(given["values"])[1]
    if name == "aten::einsum":
        letters = given["equation"].split("->")[0].replace(" ", "").split(",")
        known = zip(letters, given["tensors"], strict=True)
        lengths = {x: n for term, t in known for x, n in zip(term, shape(t), strict=True)}
        return prod(lengths.values())
    return prod(out) * shape(given[LEFT[name]])[-1]
