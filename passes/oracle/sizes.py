"""Sizes: the numbers behind symbolic sizes in one run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.export import ExportedProgram

from tokopt.ir.lengths import Length, length_of


class Sizes:
    """Reads every symbol off the shapes of the placeholders' values."""

    def __init__(self, exported: ExportedProgram, values: Sequence[Any]) -> None:
        self._numbers: dict[Any, int] = {}
        for node, value in zip(exported.graph.find_nodes(op="placeholder"), values, strict=True):
            example = node.meta.get("val")
            if isinstance(example, Tensor) and isinstance(value, Tensor):
                for symbol, size in zip(example.shape, value.shape, strict=True):
                    expr = length_of(symbol)
                    if not isinstance(expr, int) and expr.is_Symbol:
                        self._numbers[expr] = int(size)

    def number(self, length: Length) -> int:
        """Return a length as a number."""
        return length if isinstance(length, int) else int(length.subs(self._numbers))
