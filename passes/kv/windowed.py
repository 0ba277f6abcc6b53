"""Windowed: formats that code rows in blocks; rows that fill no block yet wait in half precision.

Both sides of a layer keep the same rows waiting: they are as many, and one count serves both.  A
block is coded once, from the rows in half precision, whether they waited or not: what a prompt's
rows become does not depend on what was appended later, or in how many steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from tokopt.passes.kv.format import WINDOW, Format, Side, State, grown


class Windowed(Format):
    """A format with rows that wait: the last ``waits`` of them, the others ``unit`` at a time.

    ``ranks``: rows that leave the window are stored by the salience they have then.
    """

    ranks: ClassVar[bool] = False

    @property
    @abstractmethod
    def waits(self) -> int:
        """How many rows are never coded while they are the last."""

    @property
    @abstractmethod
    def unit(self) -> int:
        """How many rows are coded at once."""

    @property
    @abstractmethod
    def counts(self) -> Mapping[str, int]:
        """What is free in the sizes of coded tensors, and the rows that one more of it stands for.

        Both sides of a layer have as many of each.
        """

    @abstractmethod
    def lengths(self, side: Side) -> Mapping[str, Mapping[str, int]]:
        """Return dim 2 of every coded tensor: of each of ``counts`` so many."""

    @abstractmethod
    def counted(self, side: Side) -> Mapping[str, int]:
        """Return coded tensors that tell the rows of a side by dim 2, and the rows of an entry."""

    @property
    def waiting(self) -> int:
        """How many of a prompt's rows wait at most."""
        return self.waits + self.unit - 1

    def leaving(self, waiting: int) -> int:
        """Return how many of so many rows are coded now, the oldest first."""
        return max(waiting - self.waits, 0) // self.unit * self.unit

    @abstractmethod
    def block(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        """Return the coded tensors of rows that leave the window."""

    def _quantize(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        count = self.leaving(rows.shape[2])
        coded = self.block(side, rows[:, :, :count], constants, salience)
        return {**coded, WINDOW: rows[:, :, count:]}

    def _append(
        self,
        side: Side,
        state: Mapping[str, Tensor],
        rows: Tensor,
        constants: Mapping[str, Tensor],
        salience: Tensor | None,
    ) -> State:
        waiting = torch.cat([state[WINDOW], rows], 2)
        count = self.leaving(waiting.shape[2])
        coded = {name: value for name, value in state.items() if name != WINDOW}
        if count:
            more = self.block(side, waiting[:, :, :count], constants, salience)
            coded = grown(coded, more)
        return {**coded, WINDOW: waiting[:, :, count:]}
