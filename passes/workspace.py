"""Workspace: a graph under rewriting, the axes of its values, and small node builders."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    InputKind,
    InputSpec,
    TensorArgument,
)

from tokopt.ir.axis import Axis
from tokopt.ir.dims import describe
from tokopt.ir.errors import InternalError, UnsupportedError
from tokopt.ir.facts import Facts, analyse
from tokopt.ir.lengths import same_length
from tokopt.ir.new_inputs import add_input
from tokopt.ir.rebuilt import draft_of
from tokopt.ir.trace import Known, compute_value, fake_mode_of, splice

Count = int | fx.Node
"""A number of rows: a constant, or the node of a symbolic size."""

aten = torch.ops.aten


@dataclass
class Workspace:
    """A copy of a program's graph, analysed; ``axes`` (those of the facts) grows with the graph."""

    exported: ExportedProgram
    facts: Facts
    axes: dict[fx.Node, list[Axis]]
    mode: FakeTensorMode
    anchors: dict[fx.Node, fx.Node] = field(default_factory=dict)
    known: Known = field(default_factory=Known)

    @staticmethod
    def of(exported: ExportedProgram) -> Workspace:
        """Copy a normalised program's graph (weights are shared) and analyse it."""
        mine = draft_of(exported)
        facts = analyse(mine)
        axes = dict(facts.dims.axes)
        grown = dataclasses.replace(facts, dims=dataclasses.replace(facts.dims, axes=axes))
        return Workspace(mine, grown, axes, fake_mode_of(mine.graph))

    @property
    def graph(self) -> fx.Graph:
        """The graph under rewriting."""
        return self.exported.graph

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """Insert a call at the insertion point, its value recorded."""
        node = self.graph.call_function(target, args, kwargs)
        compute_value(node, self.mode, self.known)
        return node

    def after(self, node: fx.Node) -> Any:
        """Return a context that inserts behind a node and behind all inserted there before."""
        return self.graph.inserting_before(self.anchors.setdefault(node, node.next))

    def hoist(self, node: fx.Node, value: fx.Node) -> bool:
        """Move a node, and what it is made of, to right behind ``value``.

        Returns False, and moves nothing, where it depends on ``value``.
        """
        order = {n: number for number, n in enumerate(self.graph.nodes)}
        found: set[fx.Node] = set()
        waiting = [node]
        while waiting:
            one = waiting.pop()
            if one is value:
                return False
            if one not in found and order[one] > order[value]:
                found.add(one)
                waiting += one.all_input_nodes
        anchor = self.anchors.setdefault(value, value.next)
        for one in sorted(found, key=order.__getitem__):
            if one is anchor:
                self.anchors[value] = anchor = anchor.next
            else:
                anchor.prepend(one)
        return True

    def splice(self, function: Any, operands: list[Any]) -> Any:
        """Trace a function on operands and insert its calls at the insertion point."""
        return splice(self.graph, function, operands, self.mode)

    def constant(self, name: str, value: torch.Tensor) -> fx.Node:
        """Add a constant to the program and return its placeholder."""
        specs = self.exported.graph_signature.input_specs
        places = self.graph.find_nodes(op="placeholder")
        at = next(i for i, spec in enumerate(specs) if spec.kind is InputKind.USER_INPUT)
        while name in self.exported.constants:
            name += "_"
        with self.graph.inserting_before(places[at]):
            node = self.graph.placeholder(f"c_{name}")
        node.meta["val"] = self.mode.from_tensor(value, static_shapes=True)
        argument = TensorArgument(name=node.name)
        specs.insert(at, InputSpec(InputKind.CONSTANT_TENSOR, argument, name))
        self.exported.constants[name] = value
        return node

    def input(self, name: str, shape: tuple[int, ...]) -> fx.Node:
        """Add an fp32 input of a constant shape, by name behind all others; return it.

        Raises ``UnsupportedError`` where the program has such an input.
        """
        value = self.mode.from_tensor(torch.zeros(shape), static_shapes=True)
        return add_input(self.exported, name, value)

    def size(self, node: fx.Node, dim: int) -> Count:
        """Return the size of a dim: an int where static, else a node."""
        value = node.meta["val"].shape[dim]
        if isinstance(value, int):
            return value
        return self.call(aten.sym_size.int, node, dim)

    def length(self, axis: Axis) -> Count:
        """Return the length of an axis that is never cut: an int, or made of inputs' sizes."""
        length = axis.root.length
        if isinstance(length, int):
            return length
        for node in self.graph.find_nodes(op="placeholder"):
            for dim, size in enumerate(getattr(node.meta.get("val"), "shape", ())):
                if not isinstance(size, int) and same_length(size.node.expr, length):
                    return self.size(node, dim)
        if not axis.root.parts:
            raise UnsupportedError(f"rows have a count that no input has ({length})")
        whole: Count = 0
        for part in axis.root.parts:
            whole = self.plus(self.length(part), whole)
        return whole

    def minus(self, a: Count, b: Count) -> Count:
        """Return ``a - b``, folded where both are constants."""
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        return a if b == 0 else self.call(operator.sub, a, b)

    def plus(self, a: Count, b: Count) -> Count:
        """Return ``a + b``, folded where both are constants."""
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        return a if b == 0 else self.call(operator.add, a, b)

    def times(self, a: Count, b: Count) -> Count:
        """Return ``a * b``, folded where both are constants."""
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        return a if b == 1 else self.call(operator.mul, a, b)

    def recompute(self, nodes: list[fx.Node]) -> None:
        """Recompute the recorded values of some calls, given in graph order."""
        for node in nodes:
            self._compute(node)

    def propagate(
        self, changed: list[fx.Node], waiting: AbstractSet[fx.Node] = frozenset()
    ) -> None:
        """Recompute what depends on changed values, as far as shapes go on changing.

        Calls in ``waiting`` are left alone: their operands are not yet what they will be.
        """
        pending = {user for node in changed for user in node.users} - set(changed)
        known = {*changed, *waiting}
        for node in self.graph.nodes:
            if node not in pending or node in known or node.op != "call_function":
                continue
            before = _shapes(node.meta.get("val"))
            self._compute(node)
            if _shapes(node.meta["val"]) != before:
                pending.update(node.users)

    def _compute(self, node: fx.Node) -> None:
        try:
            compute_value(node, self.mode, self.known)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise InternalError(
                f"a rewritten call does not fit its operands: {error}",
                where=describe(node),
                hint="report this graph and plan; another site may do meanwhile",
            ) from error


def _shapes(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return tuple(str(size) for size in value.shape)
    if isinstance(value, (list, tuple)):
        return [_shapes(v) for v in value]
    return str(value)
