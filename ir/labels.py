"""Labels: which unit of a tower each row of a later value came from.

Where a value still has the tower's axis, its axes say so.  Behind that, movements are replayed on
labels in place of data; a call that computes each row from itself passes the label on.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.axis import Axis, locate
from tokopt.ir.binding import held_value
from tokopt.ir.dims import Dims, describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.lengths import Length, length_of
from tokopt.ir.linked import linked_marks
from tokopt.ir.movement import ANY_LAYOUT, MOVES, PER_ROW
from tokopt.ir.sites import Site

ELSEWHERE = -1
"""The label of rows that come from elsewhere than the tower."""

SYMBOL = 2
"""What a free size is while labels are moved: torch.export specialises 0 and 1."""


class Labels:
    """Labels of the rows of values: the number of the unit each row came from."""

    def __init__(
        self,
        exported: ExportedProgram,
        dims: Dims,
        carriers: set[fx.Node],
        site: Site,
        lead: tuple[Axis, ...],
    ) -> None:
        self.exported, self.dims = exported, dims
        self.carriers, self.tokens = carriers, site.tokens.root
        self.lead = [axis.root for axis in lead]
        rows = torch.arange(self.number(self.tokens.length))
        self.unit_of = site.groups() if site.scattered else rows
        self.units = int(self.unit_of.max()) + 1
        self.known: dict[fx.Node, Any] = {}
        self.real: dict[fx.Node, Any] = {}

    def number(self, length: Length) -> int:
        """Return a length as a number, free sizes being ``SYMBOL``."""
        if isinstance(length, int):
            return length
        return int(length.subs({symbol: SYMBOL for symbol in length.free_symbols}))

    def rows(self, node: fx.Node, width: int, dim: int | None = None) -> Tensor:
        """Return the labels of a value's rows of ``width`` elements, int64 ``[rows]``.

        Item after item where ``dim`` says along which dim an item's rows are; as they lie else.
        """
        labels = self._of(node)
        if labels is None:
            return torch.full([prod(self._shape(node)) // width], ELSEWHERE)
        assert isinstance(labels, Tensor)
        labels = labels if dim is None else labels.movedim(dim, -2)
        labels = labels.reshape(-1, width)
        if not bool((labels == labels[:, :1]).all()):
            raise UnsupportedError(
                "rows that are merged into the text are made of several rows of the tower",
                where=describe(node),
            )
        return labels[:, 0]

    def _of(self, node: fx.Node) -> Any:
        if node not in self.known:
            self.known[node] = self._compute(node)
        return self.known[node]

    def _compute(self, node: fx.Node) -> Any:
        """Return labels of the value's shape, a list of them, or None where no unit is in it."""
        if node in self.carriers and node in self.dims.axes:
            return self._base(node)
        if node.op != "call_function":
            return None
        given = {operand: self._of(operand) for operand in node.all_input_nodes}
        if all(labels is None for labels in given.values()):
            return None
        name = operator_name(node)
        if name in PER_ROW:
            labels = next(labels for labels in given.values() if labels is not None)
            return labels[..., :1].expand(self._shape(node))
        if name not in MOVES and name != "getitem":
            uses = self.dims.uses.get(node)
            if uses is not None and not uses.moves:
                operand, labels = next((a, f) for a, f in given.items() if f is not None)
                before, after = self.dims.axes[operand], self.dims.axes[node]
                return linked_marks(labels, before, after, self._shape(node))
            raise UnsupportedError(
                f"rows pass through {name} on their way to the merge", where=describe(node)
            )
        target: Any = ANY_LAYOUT.get(node.target, node.target)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._operand)
        return target(*args, **kwargs)

    def _operand(self, operand: fx.Node) -> Any:
        """Return an operand of a movement: labels for data, the value itself for indices."""
        labels = self._of(operand)
        if labels is not None:
            return labels
        value = operand.meta.get("val")
        if isinstance(value, Tensor) and value.is_floating_point():
            return torch.full(self._shape(operand), ELSEWHERE)
        return self._value(operand)

    def _value(self, node: fx.Node) -> Any:
        """Return the value of a node that depends on no user input."""
        if node not in self.real:
            self.real[node] = self._evaluated(node)
        return self.real[node]

    def _evaluated(self, node: fx.Node) -> Any:
        value = node.meta.get("val")
        if isinstance(value, (int, torch.SymInt)):
            return self.number(length_of(value))
        if node.op == "placeholder":
            return _constant(self.exported, node)
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._value)
        target: Any = node.target
        return target(*args, **kwargs)

    def _shape(self, node: fx.Node) -> list[int]:
        return [self.number(length_of(size)) for size in node.meta["val"].shape]

    def _base(self, node: fx.Node) -> Tensor | None:
        """Return the labels of a value whose axes say where its units are."""
        shape = self._shape(node)
        labels, found = torch.zeros(shape, dtype=torch.int64), False
        absent = torch.zeros(shape, dtype=torch.bool)
        for dim, axis in enumerate(self.dims.axes[node]):
            offsets, holds = self._along(axis.root)
            if holds is not None:
                found = True
            view = [-1 if d == dim else 1 for d in range(len(shape))]
            labels = labels + offsets.clamp_min(0).reshape(view)
            absent = absent | (offsets < 0).reshape(view)
        return labels.masked_fill(absent, ELSEWHERE) if found else None

    def _along(self, axis: Axis) -> tuple[Tensor, bool | None]:
        """Return what each row of an axis adds to a label; whether the axis holds the units."""
        axis, length = axis.root, self.number(axis.root.length)
        place = locate(axis, self.tokens)
        if place is not None and place.whole:
            return self.unit_of, True
        if axis in self.lead:
            inner = [self.number(a.length) for a in self.lead[self.lead.index(axis) + 1 :]]
            return torch.arange(length) * prod(inner) * self.units, None
        if axis.factors:
            total, holds = torch.zeros(1, dtype=torch.int64), None
            step = None if place is None else place.path[0]
            for factor in step[1] if step is not None and step[0] == "*" else axis.factors:
                offsets, held = self._along(factor)
                holds = holds or held
                both = (total < 0)[:, None] | (offsets < 0)
                total = (total[:, None] + offsets).masked_fill(both, ELSEWHERE).flatten()
            if holds or bool(total.any()):
                return total, holds
        if axis.parts:
            pieces = [self._along(part) for part in axis.parts]
            if any(held for _, held in pieces):
                labels = [
                    offsets if held else torch.full_like(offsets, ELSEWHERE)
                    for offsets, held in pieces
                ]
                return torch.cat(labels), True
        return torch.zeros(length, dtype=torch.int64), None


def _constant(exported: ExportedProgram, node: fx.Node) -> Tensor:
    """Return a weight, buffer or constant of a program by its placeholder."""
    specs = exported.graph_signature.input_specs
    spec = next(s for s in specs if getattr(s.arg, "name", None) == node.name)
    held = held_value(exported, spec)
    if isinstance(held, Tensor):
        return held
    raise UnsupportedError(
        f"rows are moved by input {node.name!r}: which of them arrive is only known at run time",
        expected="image geometry that is constant in the exported program",
        hint="export with the image size as a constant",
    )
