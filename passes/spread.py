"""Spread: image rows that are spread over a sequence and chosen by a mask are a masked scatter.

Models that must leave ``masked_scatter`` out look each position's row up by the mask's running
count, ``where(mask, rows[cumsum(mask) - 1], words)``.  With as many positions as rows in every item
(what a merge asks of its inputs anyhow) both write the same rows; the scatter also says how many.
How the lookup is written does not matter: it is run on numbered rows and random masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.dead import remove_dead
from tokopt.ir.dims import is_factory, operator_name
from tokopt.ir.movement import MOVES, SAME_VALUES
from tokopt.ir.trace import call

aten = torch.ops.aten
LOOKUPS = ("aten::gather", "aten::index", "aten::index_select", "aten::embedding")
MASKS = 4
"""Random masks that a lookup is tried on."""


def scatter_spread_rows(graph: fx.Graph) -> None:
    """Replace every ``where`` over looked up rows by the scatter of these rows."""
    for node in graph.find_nodes(op="call_function", target=aten.where.self):
        shown, spread, words = node.args
        if not all(isinstance(operand, fx.Node) for operand in (shown, spread, words)):
            continue
        mask = shown
        while mask.op == "call_function" and operator_name(mask) in SAME_VALUES:
            mask = mask.all_input_nodes[0]
        value = node.meta["val"]
        by_mask = mask.meta["val"].dtype == torch.bool and mask.meta["val"].dim() == 2
        if not by_mask or value.dim() != 3 or not value.is_floating_point():
            continue
        rows = next((r for r in _looked_up(spread) if _Lookup(mask, spread, r).in_order()), None)
        if rows is not None:
            with graph.inserting_before(node):
                made = call(graph, aten.masked_scatter.default, words, shown, rows)
            made.meta |= {k: v for k, v in node.meta.items() if k != "val"}
            node.replace_all_uses_with(made)
    remove_dead(graph)


def _looked_up(spread: fx.Node) -> Iterator[fx.Node]:
    """Yield the values that a spread value's rows may come from, from the lookup on upwards."""
    node, crossed = spread, False
    while node.op == "call_function" and operator_name(node) in {*MOVES, *LOOKUPS}:
        crossed |= operator_name(node) in LOOKUPS
        given = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]
        floats = [n for n in given if n.meta["val"].is_floating_point() and not is_factory(n)]
        if len(floats) != 1:
            return
        (node,) = floats
        if crossed:
            yield node


class _UnknownError(Exception):
    """A lookup depends on more than the mask and the rows."""


class _Lookup:
    """How ``spread`` comes of ``rows`` and ``mask`` (bool ``[B, S]``), at sizes that are chosen."""

    def __init__(self, mask: fx.Node, spread: fx.Node, rows: fx.Node) -> None:
        self.mask, self.spread, self.rows = mask, spread, rows
        self.symbols: dict[Any, int] = {}

    def in_order(self) -> bool:
        """Return whether each masked position shows the next of its item's rows."""
        try:
            return all(self._agrees(seed) for seed in range(MASKS))
        except _UnknownError:
            return False

    def _agrees(self, seed: int) -> bool:
        batch, sequence = self.mask.meta["val"].shape
        items = self._size(batch, 2)
        shape = [self._size(size) for size in self.rows.meta["val"].shape]
        count, left = divmod(prod(shape[:-1]), items)
        length = self._size(sequence, count + 5)
        if left or not 0 < count <= length:
            return False
        places = torch.rand(items, length, generator=torch.Generator().manual_seed(seed)).argsort(1)
        mask = torch.zeros(items, length, dtype=torch.bool).scatter(1, places[:, :count], True)
        numbered = torch.arange(prod(shape), dtype=torch.float64).reshape(shape)
        shown = self._value(self.spread, {self.mask: mask, self.rows: numbered})
        return torch.equal(shown[mask], numbered.reshape(-1, shape[-1]))

    def _size(self, size: Any, chosen: int | None = None) -> int:
        """Return a size as a number; one that is free and bound to no number yet is ``chosen``."""
        if isinstance(size, int):
            return size
        expression = size.node.expr
        if chosen is not None and expression.is_symbol:
            self.symbols.setdefault(expression, chosen)
        found = expression.subs(self.symbols)
        if not found.is_number:
            raise _UnknownError
        return int(found)

    def _value(self, node: fx.Node, known: dict[fx.Node, Tensor]) -> Any:
        """Compute a node's value from those that are known."""
        if node in known:
            return known[node]
        value = node.meta.get("val")
        if isinstance(value, int | torch.SymInt):
            return self._size(value)
        if node.op != "call_function" or not isinstance(value, torch.Tensor):
            raise _UnknownError
        if node.target == self.mask.target and node.args == self.mask.args:
            return known[self.mask]  # exports compare the ids anew at every use
        target: Any = node.target
        args, kwargs = fx.node.map_arg(
            (node.args, dict(node.kwargs)), lambda operand: self._value(operand, known)
        )
        try:
            known[node] = target(*args, **kwargs)
        except (IndexError, RuntimeError) as error:  # a lookup of rows there are not
            raise _UnknownError from error
        return known[node]
