"""Dim inference: give every dim of every value of a graph its axis, by one rule per operator."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from tokopt.ir.axis import Axis, Place, locate
from tokopt.ir.call import Call, Uses
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.lengths import length_of
from tokopt.ir.rules import load_rules
from tokopt.ir.rules.factory import FACTORIES


@dataclass(frozen=True)
class Dims:
    """Axes of every value, and what each call does with its operands' dims.

    ``axes[node]`` has one axis per dim of a tensor value; ``outs[node]`` the same for each element
    of a multi-output call; ``learned`` are the values that depend on no user input.
    """

    axes: Mapping[fx.Node, list[Axis]]
    outs: Mapping[fx.Node, list[list[Axis]]]
    uses: Mapping[fx.Node, Uses]
    learned: frozenset[fx.Node]
    _places: dict[tuple[Axis, Axis], Place | None] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    _atoms: dict[Axis, list[Axis]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def locate(self, dim: Axis, tokens: Axis) -> Place | None:
        """Return where ``tokens`` lies inside ``dim`` (``axis.locate``), remembered.

        Axes do not change any more once they are all inferred.
        """
        key = (dim.root, tokens.root)
        if key not in self._places:
            self._places[key] = locate(*key)
        return self._places[key]

    def atoms(self, axis: Axis) -> list[Axis]:
        """Return the finest pieces of an axis, remembered."""
        root = axis.root
        if root not in self._atoms:
            self._atoms[root] = root.atoms()
        return self._atoms[root]

    def axis(self, node: fx.Node, dim: int) -> Axis:
        """Return the axis of one dim."""
        return self.axes[node][dim].root


def operator_name(node: fx.Node) -> str:
    """Return ``namespace::name`` of a call's operator, or the Python function's name."""
    schema = getattr(node.target, "_schema", None)
    return schema.name if schema is not None else getattr(node.target, "__name__", str(node.target))


def is_factory(node: fx.Node) -> bool:
    """Return whether a call's output depends on no operand's data or shape."""
    return operator_name(node) in FACTORIES


def infer_dims(exported: ExportedProgram) -> Dims:
    """Infer the axes of a graph's values.

    Raises ``UnsupportedError`` naming every operator that has no rule: never a guess.
    """
    rules = load_rules()
    axes: dict[fx.Node, list[Axis]] = {}
    outs: dict[fx.Node, list[list[Axis]]] = {}
    uses: dict[fx.Node, Uses] = {}
    learned = _parameters(exported)
    unknown: dict[str, fx.Node] = {}
    for node in exported.graph.nodes:
        fresh = _fresh(node.meta.get("val"))
        if node.op == "call_function" and node.target is operator.getitem:
            source, which = node.args
            if source in outs:
                axes[node] = outs[source][which]
                if source in learned:
                    learned.add(node)
            continue
        if len(fresh) == 1 and not isinstance(node.meta.get("val"), (list, tuple)):
            axes[node] = fresh[0]
        elif fresh:
            outs[node] = fresh
        if node.op != "call_function":
            continue
        operands = node.all_input_nodes
        if is_factory(node) or all(n in learned for n in operands if n in axes or n in outs):
            learned.add(node)
        if not any(n in axes for n in operands):
            continue
        name = operator_name(node)
        if name not in rules and node not in learned:
            unknown.setdefault(name, node)
            continue
        call = Call(node, arguments_of(node), axes, fresh or [[]], learned)
        rules.get(name, weights_alone)(call)
        uses[node] = call.uses
    if unknown:
        raise _no_rule(unknown)
    return Dims(axes, outs, uses, frozenset(learned))


def weights_alone(call: Call) -> None:
    """Say that what an operator without a rule makes of weights alone is a constant of its own."""
    for operand in call.tensors():
        for dim in range(len(call.dims(operand))):
            call.mix(operand, dim, "is a weight's, which an operator without a dim rule reads")


def _parameters(exported: ExportedProgram) -> set[fx.Node]:
    given = {
        spec.arg.name
        for spec in exported.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT and hasattr(spec.arg, "name")
    }
    placeholders = exported.graph.find_nodes(op="placeholder")
    return {n for n in placeholders if n.name not in given}


def _fresh(value: Any) -> list[list[Axis]]:
    if isinstance(value, torch.Tensor):
        return [[Axis(length_of(size)) for size in value.shape]]
    if isinstance(value, (list, tuple)):
        return [[Axis(length_of(s)) for s in v.shape] for v in value if hasattr(v, "shape")]
    return []


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """Return a call's arguments by schema name, defaults left out."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {str(i): value for i, value in enumerate(node.args)} | dict(node.kwargs)
    names = [argument.name for argument in schema.arguments]
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _no_rule(unknown: Mapping[str, fx.Node]) -> UnsupportedError:
    name, node = next(iter(unknown.items()))
    rest = [n for n in unknown if n != name]
    more = f"; also: {', '.join(rest)}" if rest else ""
    return UnsupportedError(
        f"operator {name} has no dim rule{more}",
        where=describe(node),
        expected="an operator of the table in ir/rules/",
        hint=SORTED_BY_EXPERT
        if any("grouped_mm" in name for name in unknown)
        else "add one rule to a file of ir/rules/, or export without this operator",
    )


SORTED_BY_EXPERT = (
    "rows are sorted by expert there; export with experts that are looked up row by row (in "
    "transformers: model.set_experts_implementation('batched_mm'))"
)
"""What helps where rows are routed to experts in groups."""


def describe(node: fx.Node) -> str:
    """Return where a node is, for people: its name, module path and user line where recorded."""
    text = f"node {node.name} ({operator_name(node)})" if node.op == "call_function" else node.name
    stack = node.meta.get("nn_module_stack")
    if stack:
        path = list(stack.values())[-1][0]
        text += f" in module {path}" if path else ""
    trace = node.meta.get("stack_trace")
    if trace:
        lines = [line.strip() for line in trace.splitlines() if line.strip().startswith("File")]
        own = [line for line in lines if "/torch/nn/" not in line] or lines  # who calls nn.Linear
        text += f" at {own[-1]}" if own else ""
    return text
