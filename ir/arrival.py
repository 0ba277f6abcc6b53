"""Arrival: which rows of a tower come to the sequence they are written into, and how often.

Between the two, rows may be dropped (padding that is cropped off), repeated, and joined by rows
from elsewhere (a learned newline behind each line of patches).  All this is geometry, known when
compiling: every row gets its number as a label, and the movements are replayed on the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims, describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layout import lead_axes
from tokopt.ir.lengths import Length, length_of
from tokopt.ir.movement import MOVES, PER_ROW
from tokopt.ir.region import Region

ELSEWHERE = -1
"""The label of rows that come from elsewhere than the tower."""

SYMBOL = 2
"""What a free size is while labels are moved: torch.export specialises 0 and 1."""


@dataclass(frozen=True)
class Arrival:
    """What one item of a sequence gets from a tower.

    ``reach``: bool ``[items, units]``, the units of the tower's items that arrive, each ``copies``
    rows of the sequence; ``others``: rows of the merged span that come from elsewhere.  ``holes``:
    dropped rows arrive as holes; otherwise they are gone before.
    """

    reach: Tensor
    copies: int
    others: int
    holes: bool

    @property
    def complete(self) -> bool:
        """Whether every unit arrives."""
        return bool(self.reach.all())

    def rows(self, kept: int) -> int:
        """Return the rows that arrive when ``kept`` units of each tower item stay.

        Units that do not arrive are the first to be dropped.
        """
        return self.others + self.copies * int(self.reach.sum(1).clamp_max(kept).sum())


def arrival(
    exported: ExportedProgram,
    dims: Dims,
    region: Region,
    value: fx.Node,
    dim: int,
    tokens: Axis,
    target: fx.Node,
    width: Length,
    items: Length,
    holes: bool,
) -> Arrival:
    """Return how the units ``tokens`` of ``value`` (along ``dim``) arrive at ``target``.

    The rows of ``target``, of ``width`` elements each, are written into ``items`` sequences.
    Raises ``UnsupportedError`` where that is only known at run time, or differs between items.
    """
    lead = lead_axes(dims.axes[value], dim, tokens)
    labels = Labels(exported, dims, {value, *region.short}, tokens.root, lead)
    rows = labels.rows(target, labels.number(width))
    count, units = labels.number(items), labels.number(tokens.root.length)
    of_items = rows.reshape(count, -1)
    towers = prod(labels.number(axis.root.length) for axis in lead)
    if towers % count:
        raise UnsupportedError(
            f"{towers} tower items are merged into {count} sequences", where=describe(target)
        )
    step = towers // count * units
    first = of_items[0]
    for item, found in enumerate(of_items):
        if not torch.equal(torch.where(found < 0, found, found - item * step), first):
            raise UnsupportedError(
                "batch items get different rows of the vision tower", where=describe(target)
            )
    ours = first[first >= 0]
    counts = torch.bincount(ours, minlength=step)
    copies = sorted(set(counts[counts > 0].tolist()))
    if len(copies) != 1 or counts.numel() != step:
        raise UnsupportedError(
            "some rows of the vision tower are repeated and others are not",
            where=describe(target),
        )
    reach = (counts > 0).reshape(-1, units)
    return Arrival(reach, copies[0], int((first < 0).sum()), holes)


class Labels:
    """Labels of the rows of values: the number of the unit each row came from."""

    def __init__(
        self,
        exported: ExportedProgram,
        dims: Dims,
        carriers: set[fx.Node],
        tokens: Axis,
        lead: tuple[Axis, ...],
    ) -> None:
        self.exported, self.dims = exported, dims
        self.carriers, self.tokens, self.lead = carriers, tokens, [axis.root for axis in lead]
        self.known: dict[fx.Node, Any] = {}
        self.real: dict[fx.Node, Any] = {}

    def number(self, length: Length) -> int:
        """Return a length as a number, free sizes being ``SYMBOL``."""
        if isinstance(length, int):
            return length
        return int(length.subs({symbol: SYMBOL for symbol in length.free_symbols}))

    def rows(self, node: fx.Node, width: int) -> Tensor:
        """Return the labels of a value's rows of ``width`` elements, int64 ``[rows]``."""
        labels = self._of(node)
        if labels is None:
            return torch.full([prod(self._shape(node)) // width], ELSEWHERE)
        assert isinstance(labels, Tensor)
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
            raise UnsupportedError(
                f"rows pass through {name} on their way to the merge", where=describe(node)
            )
        target: Any = node.target
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
        if axis is self.tokens:
            return torch.arange(length), True
        if axis in self.lead:
            inner = [self.number(a.length) for a in self.lead[self.lead.index(axis) + 1 :]]
            units = self.number(self.tokens.length)
            return torch.arange(length) * prod(inner) * units, None
        if axis.factors:
            total, holds = torch.zeros(1, dtype=torch.int64), None
            for factor in axis.factors:
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
    signature = exported.graph_signature
    for names in (
        signature.inputs_to_parameters,
        signature.inputs_to_buffers,
        signature.inputs_to_lifted_tensor_constants,
    ):
        if node.name in names:
            name = names[node.name]
            found = exported.state_dict.get(name, exported.constants.get(name))
            if isinstance(found, Tensor):
                return found
    raise UnsupportedError(
        f"rows are moved by input {node.name!r}: which of them arrive is only known at run time",
        expected="image geometry that is constant in the exported program",
        hint="export with the image size as a constant",
    )
