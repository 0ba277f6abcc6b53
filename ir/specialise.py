"""Specialise: a program in which one free size is a number.

The size is put in at the inputs and every recorded value is computed again; calls that only
compute numbers become these numbers.  Weights are shared with the program it is made of.
"""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch.export import ExportedProgram

from tokopt.ir.rebuilt import draft_of, rebuilt
from tokopt.ir.trace import Known, compute_value, fake_mode_of


def specialise(exported: ExportedProgram, symbol: sympy.Symbol, size: int) -> ExportedProgram:
    """Return the program with ``size`` for a free size."""
    draft, mode, known = draft_of(exported), fake_mode_of(exported.graph), Known()
    graph = draft.graph
    for node in list(graph.nodes):
        value = node.meta.get("val")
        if node.op == "placeholder" and isinstance(value, torch.Tensor):
            node.meta["val"] = _sized(value, symbol, size, mode)
        elif node.op == "call_function":
            compute_value(node, mode, known)
            if isinstance(node.meta["val"], int):
                node.replace_all_uses_with(node.meta["val"])
                graph.erase_node(node)
    static = rebuilt(draft, graph)
    static._range_constraints = {
        known: span for known, span in static.range_constraints.items() if known != symbol
    }
    static._example_inputs = None
    return static


def _sized(value: torch.Tensor, symbol: sympy.Symbol, size: int, mode: Any) -> torch.Tensor:
    """Return a recorded value of an input with the size put in."""
    sizes = [_number(one, symbol, size) for one in value.shape]
    if all(new is old for new, old in zip(sizes, value.shape, strict=True)):
        return value
    with mode:
        return torch.empty(sizes, dtype=value.dtype, device=value.device)


def _number(one: int | torch.SymInt, symbol: sympy.Symbol, size: int) -> int | torch.SymInt:
    if isinstance(one, torch.SymInt) and one.node.expr == symbol:
        return size
    return one
