"""Trace a function of tensors into a graph: fake values in, aten calls out, spliced in place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import count
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
    """Return an argument with every node replaced by its recorded value, a body by its graph."""
    return fx.node.map_arg(argument, _recorded)


def _recorded(node: fx.Node) -> Any:
    return (
        getattr(node.graph.owning_module, str(node.target)) if is_body(node) else node.meta["val"]
    )


def is_body(node: fx.Node) -> bool:
    """Return whether a node stands for the body of a loop, a graph of its own."""
    return node.op == "get_attr"


class Known:
    """Values of calls by their form: layers repeat, and operators on symbolic sizes are slow."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._forms: dict[int, tuple[Any, str]] = {}  # by identity; the value is held, so it lives

    def value(self, node: fx.Node, run: Callable[[], Any]) -> Any:
        """Return the value of an equal call where there was one, else what ``run`` returns."""
        operands = fx.node.map_arg((node.args, node.kwargs), lambda n: self._form(_recorded(n)))
        form = f"{node.target}{operands}"
        if form not in self._values:
            self._values[form] = run()
        return self._values[form]

    def _form(self, value: Any) -> str:
        """Return a text that is equal for values of equal sizes, strides and dtypes."""
        if isinstance(value, (list, tuple)):
            return str([self._form(item) for item in value])
        if isinstance(value, fx.GraphModule):
            return value.code
        if not isinstance(value, torch.Tensor):
            return str(value)
        if id(value) not in self._forms:
            text = f"<{tuple(value.shape)} {value.stride()} {value.dtype} {value.device}>"
            self._forms[id(value)] = (value, text)
        return self._forms[id(value)][1]


def compute_value(node: fx.Node, mode: FakeTensorMode, known: Known | None = None) -> None:
    """Recompute a call's recorded value from its operands' recorded values."""

    def run() -> Any:
        target: Any = node.target
        with mode, enable_python_dispatcher():
            return target(*value_of(node.args), **value_of(node.kwargs))

    node.meta["val"] = run() if known is None else known.value(node, run)


def compute_values(graph: fx.Graph, mode: FakeTensorMode) -> None:
    """Record every call's value anew, where recorded values of inputs have changed."""
    known = Known()
    for node in graph.nodes:
        if node.op == "call_function":
            compute_value(node, mode, known)


def call(
    graph: fx.Graph, target: Any, *args: Any, mode: FakeTensorMode | None = None, **kwargs: Any
) -> fx.Node:
    """Insert a call at the graph's insertion point, its value recorded."""
    node = graph.call_function(target, args, kwargs)
    compute_value(node, mode or fake_mode_of(graph))
    return node


def splice(
    graph: fx.Graph,
    function: Callable[..., Any],
    operands: Sequence[Any],
    mode: FakeTensorMode,
    table: Mapping[Any, Callable[..., Any]] | None = None,
    values: Mapping[fx.Node, Any] | None = None,
) -> Any:
    """Insert what a function does to operands (nodes or constants) at the insertion point.

    The function is traced once on the operands' fake values (symbolic sizes stay symbolic) to aten
    and dialect calls; returns the node of its result (or a tuple of nodes).  Bodies of its loops
    become graphs inside the module that owns ``graph``.  ``table`` says what operators are made of,
    where they are not to be called.  ``values`` are traced on instead of what is recorded.
    """
    nodes = [operand for operand in operands if isinstance(operand, fx.Node)]

    def of_nodes(*values: Any) -> Any:
        given = iter(values)
        return function(*(next(given) if isinstance(o, fx.Node) else o for o in operands))

    with mode, enable_python_dispatcher(), torch.no_grad():
        # one value may be recorded for many nodes; the tracer tells operands apart by identity
        recorded = [(values or {}).get(node, node.meta["val"]) for node in nodes]
        fakes = [v.detach() if isinstance(v, torch.Tensor) else v for v in recorded]
        traced = make_fx(of_nodes, decomposition_table=dict(table or {}))(*fakes)
    _drop_dead(traced.graph)
    _sizes_first(traced.graph)
    placeholders = traced.graph.find_nodes(op="placeholder")
    copies: dict[fx.Node, Any] = dict(zip(placeholders, nodes, strict=True))
    for node in traced.graph.nodes:
        if node.op == "call_function":
            copies[node] = graph.node_copy(node, lambda n: copies[n])
            copies[node].meta = {"val": node.meta.get("val")}
        elif node.op == "get_attr":
            held = getattr(traced, node.target)
            inner = isinstance(held, fx.GraphModule)
            copies[node] = _body(graph, held) if inner else _literal(graph, held, mode)
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


def _body(graph: fx.Graph, body: fx.GraphModule) -> fx.Node:
    """Insert a loop's body: the module that owns the graph holds it, under the next free name."""
    owner = graph.owning_module
    assert owner is not None
    _drop_dead(body.graph)
    _sizes_first(body.graph)
    body.recompile()
    name = next(n for n in map("body_{}".format, count()) if not hasattr(owner, n))
    setattr(owner, name, body)
    return graph.get_attr(name)


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
