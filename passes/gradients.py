"""Gradients: visual rows in the order in which the answer depends on them, measured beforehand.

NormGrad (Rebuffi et al., "There and Back Again: Revisiting Backpropagation Saliency Methods", CVPR
2020, arXiv:2004.02866).  With a virtual layer that is the identity in front of every layer, x_u its
activation and g_u the gradient of the loss there, the norm of that layer's weight gradient at
position u is

    s_u = ‖x_u‖ · ‖g_u‖            a 1x1 convolution: x_u g_uᵀ has this Frobenius norm

The loss is minus the largest logit of the answer.  Layers' maps are scaled to [0, 1] over an item's
visual rows and multiplied; items are averaged.  A graph that runs inference has no gradients, so
what is kept of this is one order of the rows for all inputs: it goes into the plan.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.binding import bind
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import Facts, TokenStack
from tokopt.ir.plan import Plan
from tokopt.ir.stream import as_rows
from tokopt.passes.answer import answer_row, first_output, rows_behind
from tokopt.passes.methods.method import Method
from tokopt.passes.methods.order import ORDER
from tokopt.passes.observe import Observation

Orders = Mapping[str, tuple[int, ...]]
"""Numbers of the visual rows by role, the most important first."""


def is_ordered(plan: Plan, find: Callable[[str], Method]) -> bool:
    """Return whether a stage keeps the same rows whatever the input, by an order."""
    return any(find(stage.method).ordered for stage in plan.stages)


def with_orders(plan: Plan, find: Callable[[str], Method], orders: Callable[[], Orders]) -> Plan:
    """Return a plan whose stages of methods that take an order have one.

    ``orders`` is called where there is such a stage.  An order that a person gave stays.
    """
    if not any(find(s.method).ordered and ORDER not in s.options for s in plan.stages):
        return plan
    found = orders()
    stages = list(plan.stages)
    for at, stage in enumerate(stages):
        order = found.get(stage.site.split(":")[0])
        if find(stage.method).ordered and order is not None and ORDER not in stage.options:
            text = " ".join(map(str, order))
            stages[at] = replace(stage, options={**stage.options, ORDER: text})
    return replace(plan, stages=tuple(stages))


def gradient_orders(
    facts: Facts, batches: Sequence[Mapping[str, Tensor]], seen: Sequence[Observation]
) -> Orders:
    """Run batches forward and backward; ``seen`` are observations of the same.

    Raises ``UnsupportedError`` where the answer depends on no row by a derivative.
    """
    entries = {
        stack.role: [site.value for site in stack.sites if site.depth < len(stack.stack.layers)]
        for stack in facts.stacks
        if stack.role in seen[0].stacks
    }
    scores: dict[str, Tensor] = {}
    for batch, one in zip(batches, seen, strict=True):
        gradients = _gradients(facts, batch, one, [n for nodes in entries.values() for n in nodes])
        for role, nodes in entries.items():
            own = [gradients[node] for node in nodes if node in gradients]
            if own:
                maps = _maps(facts, one, role, nodes, gradients)
                scores[role] = scores.get(role, 0.0) + maps.sum(0)
    if not scores:
        raise UnsupportedError("the answer depends on no stream of tokens by a derivative")
    return {
        role: tuple(torch.sort(score, descending=True, stable=True)[1].tolist())
        for role, score in scores.items()
    }


def _gradients(
    facts: Facts, batch: Mapping[str, Tensor], seen: Observation, wanted: Sequence[fx.Node]
) -> dict[fx.Node, tuple[Tensor, Tensor]]:
    """Return values of nodes and the gradients of the loss there."""
    node, number = first_output(facts)
    runner = _Differentiable(facts.exported.graph_module, set(wanted))
    with torch.enable_grad():
        outputs = runner.run(*bind(facts.exported, batch))
        scores = answer_row(facts, outputs[number], node, rows_behind(facts, seen))
        values = list(runner.seen.values())
        loss = -scores.amax(-1).sum()
        found = torch.autograd.grad(loss, values, allow_unused=True) if loss.requires_grad else ()
    return {
        node: (value.detach(), gradient)
        for (node, value), gradient in zip(runner.seen.items(), found, strict=False)
        if gradient is not None
    }


def _maps(
    facts: Facts,
    seen: Observation,
    role: str,
    nodes: Sequence[fx.Node],
    gradients: Mapping[fx.Node, tuple[Tensor, Tensor]],
) -> Tensor:
    """Return the product of the layers' maps of a stack, fp64 ``[B, n]`` over visual rows."""
    stack: TokenStack = seen.stacks[role].stack
    candidates = seen.stacks[role].candidates
    product: Tensor | None = None
    for node in nodes:
        if node not in gradients:
            continue
        value, gradient = (
            as_rows(part.double(), node, facts, stack).norm(dim=-1) for part in gradients[node]
        )
        items = (value * gradient).expand(candidates.shape)[candidates].view(len(candidates), -1)
        least, most = items.amin(1, keepdim=True), items.amax(1, keepdim=True)
        scaled = torch.where(most > least, (items - least) / (most - least), 1.0)
        product = scaled if product is None else product * scaled
    assert product is not None
    return product


class _Differentiable(fx.Interpreter):
    """Run a graph so that the output can be differentiated by the values of some nodes."""

    def __init__(self, module: fx.GraphModule, wanted: set[fx.Node]) -> None:
        super().__init__(module)
        self.wanted = wanted
        self.seen: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n in self.wanted:
            result = result if result.requires_grad else result.detach().requires_grad_()
            self.seen[n] = result
        return result
