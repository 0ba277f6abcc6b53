"""Attention sites: where rows of a token axis read each other, fused or written out.

Fused: one ``scaled_dot_product_attention``.  Written out: a softmax over keys between two matrix
products, with scaling, masking, casts and dropout in between.  What is found is the same record.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims, arguments_of, operator_name
from tokopt.ir.logit_scale import logit_scale

FUSED = "aten::scaled_dot_product_attention"
SOFTMAX = frozenset({"aten::softmax", "aten::_softmax", "aten::_safe_softmax"})
PRODUCTS = frozenset({"aten::matmul", "aten::bmm", "aten::baddbmm", "aten::einsum"})
PASSING = frozenset(
    f"aten::{name}"
    for name in (
        "mul div add sub to _to_copy clone masked_fill where dropout view _unsafe_view reshape "
        "flatten unflatten view_as "
        "expand tanh type_as alias native_dropout unsqueeze squeeze contiguous maximum clamp"
    ).split()
)


@dataclass(frozen=True)
class Attention:
    """One attention: query ``[…, Q, d]``, value ``[…, N, e]``, probabilities ``[…, Q, N]``.

    ``key`` is ``[…, N, d]`` where ``fused``, else ``[…, d, N]`` as the product reads it.
    ``node`` is the fused call or the softmax; ``out`` the value with the result.  ``scale`` is the
    factor from the product to the logits, None where that is ``1/sqrt(d)`` or not a number.
    """

    node: fx.Node
    out: fx.Node
    query: fx.Node
    key: fx.Node
    value: fx.Node
    mask: fx.Node | None
    scale: float | None
    causal: bool
    queries: Axis
    keys: Axis

    @property
    def fused(self) -> bool:
        """Whether the probabilities are hidden inside one operator."""
        return operator_name(self.node) == FUSED


def find_attention(graph: fx.Graph, dims: Dims) -> list[Attention]:
    """Return every attention of a graph, in graph order."""
    found: list[Attention] = []
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        name = operator_name(node)
        if name == FUSED:
            found.append(_fused(node, dims))
        elif name in SOFTMAX:
            site = _explicit(node, dims)
            if site is not None:
                found.append(site)
    return found


def _fused(node: fx.Node, dims: Dims) -> Attention:
    given = arguments_of(node)
    query, key, value = given["query"], given["key"], given["value"]
    return Attention(
        node=node,
        out=node,
        query=query,
        key=key,
        value=value,
        mask=given.get("attn_mask"),
        scale=given.get("scale"),
        causal=bool(given.get("is_causal", False)),
        queries=dims.axis(query, -2),
        keys=dims.axis(key, -2),
    )


def _explicit(softmax: fx.Node, dims: Dims) -> Attention | None:
    rank = len(dims.axes[softmax])
    if rank < 2 or arguments_of(softmax)["dim"] % rank != rank - 1:
        return None
    scores = next((p for p in upstream(softmax) if _is_product(p, dims)), None)
    mixed = next((p for p in _down(softmax) if _is_product(p, dims)), None)
    if scores is None or mixed is None:
        return None
    query, key = _factors(scores)
    _, value = _factors(mixed)
    return Attention(
        node=softmax,
        out=mixed,
        query=query,
        key=key,
        value=value,
        mask=None,
        scale=logit_scale(softmax, scores),
        causal=False,
        queries=dims.axis(softmax, -2),
        keys=dims.axis(softmax, -1),
    )


def _factors(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    operands = node.all_input_nodes[-2:]
    return operands[0], operands[1]


def _is_product(node: fx.Node, dims: Dims) -> bool:
    """Return whether a node multiplies two computed values (no learned weight)."""
    if operator_name(node) not in PRODUCTS or len(node.all_input_nodes) < 2:
        return False
    return not any(n in dims.learned for n in _factors(node))


def upstream(node: fx.Node) -> Iterator[fx.Node]:
    """Yield what a softmax's scores were computed from, nearest first, through passing calls."""
    queue, seen = list(node.all_input_nodes), set()
    while queue:
        current = queue.pop(0)
        if current in seen or current.op != "call_function":
            continue
        seen.add(current)
        yield current
        if operator_name(current) in PASSING:
            queue.extend(current.all_input_nodes)


def _down(node: fx.Node) -> Iterator[fx.Node]:
    queue, seen = list(node.users), set()
    while queue:
        current = queue.pop(0)
        if current in seen or current.op != "call_function":
            continue
        seen.add(current)
        yield current
        if operator_name(current) in PASSING:
            queue.extend(current.users)
