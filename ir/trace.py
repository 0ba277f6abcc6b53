"""Trace a function of tensors into a graph: fake values in, aten calls out, spliced in place."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx


def fake_mode_of(graph: fx.Graph) -> FakeTensorMode:
    """Return the fake mode a program's values were recorded in (its shape symbols live there)."""
    for node in graph.nodes:
        mode = getattr(node.meta.get("val"), "fake_mode", None)
        if mode is not None:
            return mode
    return FakeTensorMode()


def value_of(argument: Any) -> Any:
    """Return an argument with every node replaced by its recorded value."""
    return fx.node.map_arg(argument, lambda node: node.meta["val"])


def compute_value(node: fx.Node, mode: FakeTensorMode, known: dict[str, Any] | None = None) -> None:
    """Recompute a call's recorded value from its operands' recorded values.

    ``known`` remembers the values of calls by their form: layers repeat, and running an operator
    on symbolic sizes is slow.
    """
    form = call_form(node) if known is not None else ""
    if known is not None and form in known:
        node.meta["val"] = known[form]
        return
    with mode, enable_python_dispatcher():
        target: Any = node.target
        node.meta["val"] = target(*value_of(node.args), **value_of(node.kwargs))
    if known is not None:
        known[form] = node.meta["val"]


def call_form(node: fx.Node) -> str:
    """Return a text that is equal for calls whose results have equal sizes, strides and dtypes."""
    operands = fx.node.map_arg((node.args, node.kwargs), lambda n: _form(n.meta["val"]))
    return f"{node.target}{operands}"


def _form(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"<{tuple(value.shape)} {value.stride()} {value.dtype} {value.device}>"
    if isinstance(value, (list, tuple)):
        return str([_form(item) for item in value])
    return str(value)


def call(
    graph: fx.Graph, target: Any, *args: Any, mode: FakeTensorMode | None = None, **kwargs: Any
) -> fx.Node:
    """Insert a call at the graph's insertion point, its value recorded."""
    node = graph.call_function(target, args, kwargs)
    compute_value(node, mode or fake_mode_of(graph))
    return node


def splice(
    graph: fx.Graph, function: Callable[..., Any], operands: Sequence[Any], mode: FakeTensorMode
) -> Any:
    """Insert what a function does to operands (nodes or constants) at the insertion point.

    The function is traced once on the operands' fake values (symbolic sizes stay symbolic) to aten
    and dialect calls; returns the node of its result (or a tuple of nodes).
    """
    nodes = [operand for operand in operands if isinstance(operand, fx.Node)]

    def of_nodes(*values: Any) -> Any:
        given = iter(values)
        return function(*(next(given) if isinstance(o, fx.Node) else o for o in operands))

    with mode, enable_python_dispatcher(), torch.no_grad():
        # one value may be recorded for many nodes; the tracer tells operands apart by identity
        values = [node.meta["val"] for node in nodes]
        fakes = [v.detach() if isinstance(v, torch.Tensor) else v for v in values]
        traced = make_fx(of_nodes)(*fakes)
    _drop_dead(traced.graph)
    _sizes_first(traced.graph)
    placeholders = traced.graph.find_nodes(op="placeholder")
    copies: dict[fx.Node, Any] = dict(zip(placeholders, nodes, strict=True))
    for node in traced.graph.nodes:
        if node.op == "call_function":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = {"val": node.meta.get("val")}
        elif node.op == "get_attr":
            constant = getattr(traced, node.target)
            copies[node] = _literal(graph, constant, mode)
        elif node.op == "output":
            return fx.node.map_arg(node.args[0], lambda n: copies[n])
    raise AssertionError("a traced graph has an output")


def _drop_dead(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)


def _sizes_first(graph: fx.Graph) -> None:
    """Move every size right behind the tensor it is read from.

    Where the tracer first asks for a size depends on what fake tensors have cached: two traces of
    one function would differ in order.
    """
    behind = max(graph.find_nodes(op="placeholder"), default=None)
    for node in graph.find_nodes(op="call_function", target=torch.ops.aten.sym_size.int)[::-1]:
        source = node.args[0]
        (behind if source.op == "placeholder" and behind else source).append(node)


def _literal(graph: fx.Graph, constant: torch.Tensor, mode: FakeTensorMode) -> fx.Node:
    """Insert a small constant as a call: exported programs hold no attributes we could add to."""
    if constant.numel() != 1:
        raise AssertionError("a method must compute its tables, not carry tensors")
    return call(
        graph,
        torch.ops.aten.full.default,
        list(constant.shape),
        constant.item(),
        dtype=constant.dtype,
        mode=mode,
    )
