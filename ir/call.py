"""Call: one operator call as a dim rule sees it, and what the rule says of it.

A rule states, for each dim of each tensor operand, what becomes of its rows:

``link``  the dim is a dim of the output, row for row
``fold``  its rows are reduced as a set: order does not matter, absent rows can be masked
``pick``  a constant range of its rows is read
``move``  its rows go elsewhere unchanged (index, permutation, scatter, regrouping)
``mix``   its rows are combined by position (convolution, pooling, scan, learned weights)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from tokopt.ir.axis import Axis, unify
from tokopt.ir.lengths import Length, is_one, same_length


@dataclass(frozen=True)
class Pick:
    """Rows ``start .. start + length`` of operand ``operand``'s dim ``dim`` are read."""

    operand: fx.Node
    dim: int
    start: Length
    length: Length


@dataclass(frozen=True)
class Move:
    """Rows of ``operand``'s dim ``dim`` go to dim ``out`` (None: to no single dim), unchanged."""

    operand: fx.Node
    dim: int
    out: int | None
    reason: str


@dataclass(frozen=True)
class Mix:
    """Rows of ``operand``'s dim ``dim`` are combined by their position.

    ``factor``: only along this factor of the dim (a pooling window); the others pass.
    """

    operand: fx.Node
    dim: int
    reason: str
    factor: Axis | None = None


@dataclass
class Uses:
    """All that a rule said of one call beyond equalities.

    ``unread`` operands lend a dtype: none of their entries is read.  ``repeats`` are dims of the
    output along which rows are repeated or operands counted: no dim's rows go there.
    """

    folds: set[tuple[fx.Node, int]] = field(default_factory=set)
    picks: list[Pick] = field(default_factory=list)
    moves: list[Move] = field(default_factory=list)
    mixes: list[Mix] = field(default_factory=list)
    unread: set[fx.Node] = field(default_factory=set)
    repeats: set[int] = field(default_factory=set)


@dataclass
class Call:
    """One call: the node, its arguments by schema name, axes of operands and outputs."""

    node: fx.Node
    arguments: dict[str, Any]
    axes: dict[fx.Node, list[Axis]]
    outs: list[list[Axis]]
    learned: frozenset[fx.Node] | set[fx.Node]
    uses: Uses = field(default_factory=Uses)

    @property
    def out(self) -> list[Axis]:
        """Axes of the (first) output."""
        return self.outs[0]

    def get(self, name: str, default: Any = None) -> Any:
        """Return an argument by its schema name."""
        return self.arguments.get(name, default)

    def tensors(self) -> list[fx.Node]:
        """Return the tensor operands in order, those inside lists included, each once."""
        return [n for n in self.node.all_input_nodes if n in self.axes]

    def dims(self, operand: fx.Node) -> list[Axis]:
        """Return the axes of an operand's dims."""
        return self.axes[operand]

    def is_tensor(self, value: Any) -> bool:
        """Return whether an argument is a tensor operand."""
        return isinstance(value, fx.Node) and value in self.axes

    def link(self, operand: fx.Node, dim: int, out: int, which: int = 0) -> None:
        """Say that an operand's dim is an output's dim, row for row (size-1 dims broadcast)."""
        a, b = self.axes[operand][dim], self.outs[which][out]
        if not is_one(a.length) and not is_one(b.length):
            unify(a, b)

    def link_others(self, operand: fx.Node, dim: int, which: int = 0) -> None:
        """Link every dim of an operand but one with the output's dim of the same place."""
        for other in range(len(self.axes[operand])):
            if other != dim:
                self.link(operand, other, other, which)

    def broadcast(self, operand: fx.Node, out: Sequence[Axis]) -> None:
        """Link an operand's dims with output axes aligned at the right."""
        for a, b in zip(reversed(self.axes[operand]), reversed(out), strict=False):
            if not is_one(a.length) and same_length(a.length, b.length):
                unify(a, b)

    def broadcast_one(self, operand: fx.Node, dim: int, out: Axis) -> None:
        """Link one operand dim with one output axis where both have the same length."""
        axis = self.axes[operand][dim]
        if not is_one(axis.length) and same_length(axis.length, out.length):
            unify(axis, out)

    def fold(self, operand: fx.Node, dim: int) -> None:
        """Say that a dim is reduced as a set."""
        self.uses.folds.add((operand, dim % len(self.axes[operand])))

    def unread(self, operand: fx.Node) -> None:
        """Say that no entry of an operand is read."""
        self.uses.unread.add(operand)
        for dim in range(len(self.axes[operand])):
            self.fold(operand, dim)

    def repeat(self, out: int) -> None:
        """Say that no dim's rows go to a dim of the output: it repeats, or counts operands."""
        self.uses.repeats.add(out)

    def pick(self, operand: fx.Node, dim: int, start: Length, length: Length) -> None:
        """Say that a constant range of a dim is read."""
        self.uses.picks.append(Pick(operand, dim, start, length))

    def move(self, operand: fx.Node, dim: int, out: int | None, reason: str) -> None:
        """Say that a dim's rows go elsewhere unchanged."""
        if not is_one(self.axes[operand][dim].length):
            self.uses.moves.append(Move(operand, dim, out, reason))

    def mix(self, operand: fx.Node, dim: int, reason: str, factor: Axis | None = None) -> None:
        """Say that a dim's rows are combined by position, perhaps along one factor alone."""
        if not is_one(self.axes[operand][dim].length):
            self.uses.mixes.append(Mix(operand, dim, reason, factor))

    def wrap(self, operand: fx.Node, dim: int) -> int:
        """Return a possibly negative dim as a non-negative one."""
        return dim % max(1, len(self.axes[operand]))


def dim_list(value: Any, rank: int) -> list[int]:
    """Return a ``dim`` argument (int, list, or None for all) as non-negative ints."""
    if value is None or (isinstance(value, (list, tuple)) and not value):
        return list(range(rank))
    dims = [value] if isinstance(value, int) else list(value)
    return [d % max(1, rank) for d in dims]
