"""Interpreter: run a graph at full length in fp32; dead entries obey the table of rules.

Values are visited (a stage marks rows) and watched (a tap is read) on the way.  Until the first row
is marked every operator runs as it is, and so does later every call none of whose operands has a
dead entry: what is not touched by dropping is the original program.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from tokopt.ir.dims import describe, operator_name
from tokopt.ir.errors import InternalError, UnsupportedError
from tokopt.ir.facts import Facts
from tokopt.ir.movement import ANY_LAYOUT
from tokopt.ir.precision import full_precision
from tokopt.passes.oracle.dead import Marked, bare, has_dead
from tokopt.passes.oracle.operation import operation_of
from tokopt.passes.oracle.row_dims import RowDims
from tokopt.passes.oracle.semantics.table import find_rule

Visit = Callable[[Tensor], Tensor]
Call = Callable[[tuple[Any, ...], dict[str, Any]], Any]
Around = Callable[[Call, tuple[Any, ...], dict[str, Any]], Any]
"""``(call, args, kwargs) -> value``: ``call`` is the operator as the oracle computes it."""


class MaskedInterpreter(fx.Interpreter):
    """Interpreter of one graph.

    ``visits`` maps a node to what becomes of its value before anything reads it; the values of
    ``watched`` nodes, as they are read, are found in ``seen``.  ``dropped``: inputs have dead
    entries; a size read off them is then the original's, as everything is that is not marked.
    ``around`` maps a node to who calls it, given how.
    """

    def __init__(
        self,
        facts: Facts,
        visits: Mapping[fx.Node, Visit],
        watched: AbstractSet[fx.Node],
        dropped: bool = False,
        around: Mapping[fx.Node, Around] = MappingProxyType({}),
    ) -> None:
        super().__init__(facts.exported.graph_module)
        self.extra_traceback = False
        self.learned, self.counts_rows = facts.dims.learned, RowDims(facts)
        self.visits, self.watched, self.around = visits, watched, around
        self.seen: dict[fx.Node, Any] = {}
        self._node: fx.Node | None = None
        self._started = self._dropped = dropped

    def execute(self, values: list[Any]) -> list[Any]:
        """Run on the placeholders' values; return the outputs, ``Marked`` ones included."""
        with torch.no_grad():
            return list(self.run(*values, enable_io_processing=False))

    def run_node(self, n: fx.Node) -> Any:
        """Compute one node, then watch and visit its value."""
        self._node = n
        value = super().run_node(n)
        if n in self.watched:
            self.seen[n] = value
        if n in self.visits:
            value = self.visits[n](value)
            self._started = True
            if n in self.watched:
                self.seen[n] = value
        return value

    def peek(self, wanted: AbstractSet[fx.Node], node: fx.Node, value: Any) -> dict[fx.Node, Any]:
        """Return what ``wanted``, behind ``node``, would be if ``node`` were ``value``.

        Nothing of it stays: the run goes on as if nobody had looked ahead.  Operators are called as
        they are, whoever is ``around`` them.
        """
        kept, current = dict(self.env), self._node
        around, self.around = self.around, {}
        self.env[node] = value
        needed: set[fx.Node] = set()
        waiting = list(wanted)
        while waiting:
            one = waiting.pop()
            if one not in self.env and one not in needed:
                needed.add(one)
                waiting += one.all_input_nodes
        for one in self.graph.nodes:
            if one in needed:
                self._node = one
                self.env[one] = super().run_node(one)
        found = {one: self.env[one] for one in wanted}
        self.env, self._node, self.around = kept, current, around
        return found

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call an operator: by its rule where an operand has dead entries, else as it is."""
        node = self._node
        assert node is not None
        args, kwargs = full_precision(args), full_precision(kwargs)
        if operator_name(node) in ("aten::_softmax", "aten::_log_softmax"):
            args = (*args[:2], False)  # half_to_float: there is no half any more
        around = self.around.get(node)
        if around is not None:
            return around(lambda a, k: self._called(node, target, a, k), args, kwargs)
        return self._called(node, target, args, kwargs)

    def _called(
        self, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if self._dropped and target is torch.ops.aten.sym_size.int:
            return bare(args[0]).shape[args[1]]
        try:
            if target is operator.getitem or not self._touched(node):
                return super().call_function(ANY_LAYOUT.get(target, target), args, kwargs)
            if not isinstance(target, OpOverload) or (rule := find_rule(node)) is None:
                raise UnsupportedError(
                    f"the masked oracle has no rule for {operator_name(node)} on dropped tokens",
                    where=describe(node),
                    hint="place the stage behind this operator, or add a rule to passes/oracle",
                )
            return rule(operation_of(node, args, kwargs, self.learned, self.counts_rows))
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            raise InternalError(
                f"the masked oracle failed: {error}", where=describe(node)
            ) from error

    def _touched(self, node: fx.Node) -> bool:
        """Return whether an operand has a dead entry; weights and constants never have."""
        return self._started and any(
            has_dead(self.env[operand])
            for operand in node.all_input_nodes
            if operand not in self.learned and isinstance(self.env[operand], _HOLDERS)
        )


_HOLDERS = (Tensor, Marked, list, tuple)
