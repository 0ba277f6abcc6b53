"""Complex pairs: a program whose complex values are two real ones each, for ONNX has no complex.

Rotary embeddings are often written as products of complex numbers.  Every complex value becomes its
real and its imaginary part; operators that move entries do so to both.  An operator that has no
rule here is refused by name.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.binding import held_value
from tokopt.ir.dims import describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.movement import ANY_LAYOUT, MOVES
from tokopt.ir.rebuilt import copy_graph, rebuilt
from tokopt.ir.trace import call, fake_mode_of, splice

aten = torch.ops.aten
Pair = tuple[Any, Any]
"""The real and the imaginary part of a number; that of a real one is None."""

UNCHANGED = MOVES | {"getitem", "aten::neg", "aten::detach"}
"""Operators that do to a complex number what they do to both of its parts."""


def plus(a: Pair, b: Pair) -> Pair:
    """Return ``a + b``."""
    return a[0] + b[0], b[1] if a[1] is None else a[1] if b[1] is None else a[1] + b[1]


def minus(a: Pair, b: Pair) -> Pair:
    """Return ``a - b``."""
    return plus(a, (-b[0], None if b[1] is None else -b[1]))


def times(a: Pair, b: Pair) -> Pair:
    """Return ``(a₀ + a₁ i) (b₀ + b₁ i)``."""
    if a[1] is None:
        a, b = b, a
    if b[1] is None:
        return a[0] * b[0], a[1] * b[0]
    return a[0] * b[0] - a[1] * b[1], a[0] * b[1] + a[1] * b[0]


def over(a: Pair, b: Pair) -> Pair:
    """Return ``a / b``, by a complex ``b`` as ``a b* / |b|²``."""
    if b[1] is None:
        return a[0] / b[0], a[1] / b[0]
    size = b[0] * b[0] + b[1] * b[1]
    real, imaginary = times(a, (b[0], -b[1]))
    return real / size, imaginary / size


RULES: Mapping[str, Callable[..., Any]] = {
    "aten::add": plus,
    "aten::sub": minus,
    "aten::mul": times,
    "aten::div": over,
    "aten::conj": lambda a: (a[0], -a[1]),
    "aten::_conj": lambda a: (a[0], -a[1]),
    "aten::exp": lambda a: (a[0].exp() * a[1].cos(), a[0].exp() * a[1].sin()),
    "aten::polar": lambda size, angle: (size[0] * angle[0].cos(), size[0] * angle[0].sin()),
    "aten::complex": lambda real, imaginary: (real[0], imaginary[0]),
    "aten::view_as_complex": lambda x: (x[0].select(-1, 0), x[0].select(-1, 1)),
    "aten::view_as_real": lambda a: torch.stack(a, -1),
    "aten::real": lambda a: a[0],
    "aten::imag": lambda a: a[1],
    "aten::abs": lambda a: (a[0] * a[0] + a[1] * a[1]).sqrt(),
    "aten::angle": lambda a: torch.atan2(a[1], a[0]),
}
"""What operators do to numbers given as pairs."""


def in_pairs(exported: ExportedProgram) -> ExportedProgram:
    """Return a program without complex values; the same one where it has none.

    Raises ``UnsupportedError`` for complex inputs and outputs, and for operators without a rule.
    """
    if not any(map(is_complex, exported.graph.nodes)):
        return exported
    graph, program = copy_graph(exported.graph), copy.copy(exported)
    program._state_dict, program._constants = dict(exported.state_dict), dict(exported.constants)
    calls = [n for n in graph.nodes if n.op == "call_function"]
    pairs = _weights(program, graph)
    mode, gone = fake_mode_of(graph), list[fx.Node]()
    for node in calls:
        if not (is_complex(node) or any(operand in pairs for operand in node.all_input_nodes)):
            continue
        with graph.inserting_before(node):
            made = _parts(graph, node, pairs) or _computed(graph, node, pairs, mode)
        if isinstance(made, fx.Node):
            node.replace_all_uses_with(made)
        else:
            pairs[node] = made
        gone.append(node)
    (output,) = graph.find_nodes(op="output")
    for result in output.all_input_nodes:
        if result in pairs:
            raise _refusal("a complex output", result)
    for node in reversed(gone):
        graph.erase_node(node)
    return rebuilt(program, graph)


def is_complex(node: fx.Node) -> bool:
    """Return whether a node's value is, or holds, a tensor of complex numbers."""
    value = node.meta.get("val")
    values = value if isinstance(value, (list, tuple)) else [value]
    return any(isinstance(v, Tensor) and v.is_complex() for v in values)


def _weights(program: ExportedProgram, graph: fx.Graph) -> dict[fx.Node, Pair]:
    """Store complex weights as real ones with a last dim of two; return their parts."""
    pairs: dict[fx.Node, Pair] = {}
    placeholders = graph.find_nodes(op="placeholder")
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if not is_complex(node):
            continue
        held = held_value(program, spec)
        if held is None:
            raise _refusal("a complex input", node)
        kept = program.state_dict if spec.target in program.state_dict else program.constants
        kept[spec.target] = torch.view_as_real(held.detach())
        node.meta["val"] = torch.view_as_real(node.meta["val"])
        with graph.inserting_after(placeholders[-1]):
            imaginary = call(graph, aten.select.int, node, -1, 1)
            pairs[node] = (call(graph, aten.select.int, node, -1, 0), imaginary)
    return pairs


def _parts(graph: fx.Graph, node: fx.Node, pairs: Mapping[fx.Node, Pair]) -> Pair | None:
    """Insert a movement once for each part; None where the call is none."""
    if operator_name(node) not in UNCHANGED:
        return None

    def part(which: int) -> fx.Node:
        def of(operand: fx.Node) -> fx.Node:
            pair: Sequence[fx.Node] = pairs.get(operand, (operand, operand))
            return pair[which]

        given: Any = fx.node.map_arg((node.args, node.kwargs), of)
        return call(graph, ANY_LAYOUT.get(node.target, node.target), *given[0], **given[1])

    return part(0), part(1)


def _computed(graph: fx.Graph, node: fx.Node, pairs: Mapping[fx.Node, Pair], mode: Any) -> Any:
    """Insert what a call does to pairs: a pair of nodes, or one node where that is real."""
    rule = RULES.get(operator_name(node))
    if rule is None or node.kwargs or len(node.args) != len(inspect.signature(rule).parameters):
        raise _refusal(f"complex numbers in {operator_name(node)}", node)
    given = [pairs.get(a, (a, None)) if isinstance(a, fx.Node) else (a, None) for a in node.args]

    def run(*parts: Any) -> Any:
        return rule(*zip(parts[::2], parts[1::2], strict=True))

    return splice(graph, run, [part for pair in given for part in pair], mode)


def _refusal(what: str, node: fx.Node) -> UnsupportedError:
    return UnsupportedError(
        f"{what} has no form in ONNX",
        where=describe(node),
        hint="another target, for example --target aotinductor",
    )
