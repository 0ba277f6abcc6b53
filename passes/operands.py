"""Operands: the values that a traced function takes, each found again by its slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, fx

Given = Sequence[Tensor]
Slot = Callable[[Given], Tensor]


class Operands:
    """Nodes in the order in which a traced function will be given their values."""

    def __init__(self) -> None:
        self.nodes: list[fx.Node] = []

    def slot(self, node: fx.Node) -> Slot:
        """Add a node; return how to find its value among those given."""
        self.nodes.append(node)
        at = len(self.nodes) - 1
        return lambda given: given[at]

    def slots(self, nodes: Sequence[fx.Node]) -> Callable[[Given], list[Tensor]]:
        """Add nodes; return how to find their values."""
        found = [self.slot(node) for node in nodes]
        return lambda given: [one(given) for one in found]

    def maybe(self, node: fx.Node | None) -> Callable[[Given], Tensor | None]:
        """Add a node that may not be there; its value is then None."""
        return (lambda _: None) if node is None else self.slot(node)
