"""Windowed: formats that code rows in blocks; rows that fill no block yet wait in half precision.

Both sides of a layer keep the same rows waiting: they are as many, and one count serves both.  A
block is coded once, from the rows in half precision, whether they waited or not: what a prompt's
rows become does not depend on what was appended later, or in how many steps.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from tokopt.passes.kv.format import WINDOW, Format, Side, State, grown


class Windowed(Format):
    """A format with rows that wait: the last ``waits`` of them, the others ``unit`` at a time."""

    @property
    @abstractmethod
    def waits(self) -> int:
        """How many rows are never coded while they are the last."""

    @property
    @abstractmethod
    def unit(self) -> int:
        """How many rows are coded at once; coded tensors grow by one in dim 2 for as many."""

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
