"""Roofline: how long a program would take if it used a device wholly; a lower bound.

Williams, Waterman, Patterson, "Roofline", CACM 2009: a call takes what its operations take or what
its bytes take, whichever is longer.  Products count (linear layers, attention, convolutions), with
everything else fused into them; attention moves queries, keys, values and results alone.  What
stages insert is charged unfused: its operations and its bytes, one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import prod

import torch
from torch import Tensor, fx

from tokopt.ir.facts import Facts
from tokopt.ir.plan import Plan
from tokopt.passes.cost import Cost
from tokopt.passes.devices import Device
from tokopt.passes.macs import Shape, macs_of, predicted_shapes


def predict_seconds(
    facts: Facts, plan: Plan, inputs: Mapping[str, Tensor], device: Device
) -> float:
    """Return the roofline of what a plan leaves of the original's products."""
    shapes = predicted_shapes(facts, plan, inputs)
    return products_seconds(facts.exported.graph.nodes, shapes, device)


def products_seconds(
    nodes: Iterable[fx.Node], shapes: Callable[[fx.Node], Shape], device: Device
) -> float:
    """Return the roofline of the products among calls of given shapes."""
    return sum(_seconds(node, shapes(node), device) for node in nodes)


def selector_seconds(costs: Iterable[Cost], device: Device) -> float:
    """Return the time of what stages insert, which computes in fp32."""
    rate = device.peak(torch.float32)
    return sum(cost.flops / rate + cost.bytes / device.bandwidth for cost in costs)


def _seconds(node: fx.Node, shape: Shape, device: Device) -> float:
    macs = macs_of(node, shape)
    if not macs:
        return 0.0
    value = node.meta["val"]
    tensors = [n for n in (node, *node.all_input_nodes) if isinstance(n.meta.get("val"), Tensor)]
    moved = sum(prod(shape(n)) * n.meta["val"].itemsize for n in tensors)
    return max(2 * macs / device.peak(value.dtype), moved / device.bandwidth)
