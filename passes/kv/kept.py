"""Kept: how one side of a layer is stored, as programs hand it on.

A format that stores each row alone (``rowwise``) is handed on as stored.  Of a format that codes
rows in blocks (``Windowed``) programs hand on the rows in half precision, its *window*: prefill all
of a prompt's, decode those that wait and the new one.  What leaves the window is coded between
calls, by a program of its own, and decode reads it as further inputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.passes.kv.format import WINDOW, Format, Side, State
from tokopt.passes.kv.windowed import Windowed


@dataclass(frozen=True)
class Kept:
    """A side of a layer; its constants are called ``name`` first in programs."""

    name: str
    side: Side
    format: Format
    constants: Mapping[str, Tensor]

    @property
    def windowed(self) -> Windowed | None:
        """The format, where it codes rows in blocks."""
        return self.format if isinstance(self.format, Windowed) else None

    @property
    def handed_name(self) -> str:
        """What the format calls the tensor that is handed on."""
        return self.format.rowwise or WINDOW

    def input_of(self, cache: str, name: str) -> str:
        """Return the input that has one of the stored tensors of a cache: its own, or beside it."""
        return cache if name == self.handed_name else f"{cache}_{name.replace('.', '_')}"

    @property
    def parts(self) -> tuple[str, ...]:
        """The coded tensors that prefill hands on: of a format of pools, which codes all there."""
        windowed = self.windowed
        return () if windowed is None or not windowed.pooled else tuple(windowed.lengths(self.side))

    def handed(self, rows: Tensor, constants: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return rows ``[B, H, T, D]`` as one program hands them to the next."""
        if self.windowed is not None:
            return self.format.prepared(rows)
        own = self.constants if constants is None else constants
        (stored,) = self.format.quantize(self.side, rows, own, None).values()
        return stored

    def block(
        self,
        rows: Tensor,
        salience: Tensor | None = None,
        constants: Mapping[str, Tensor] | None = None,
    ) -> State:
        """Return the coded tensors of rows that leave the window, whole units of them."""
        assert self.windowed is not None
        own = self.constants if constants is None else constants
        return self.windowed.block(self.side, rows, own, salience)

    def stored(
        self,
        rows: Tensor,
        salience: Tensor | None = None,
        constants: Mapping[str, Tensor] | None = None,
    ) -> State:
        """Return a prompt's rows as they lie between two tokens."""
        own = self.constants if constants is None else constants
        return self.format.quantize(self.side, rows, own, salience)

    def form(self, heads: int, width: int, dtype: torch.dtype) -> State:
        """Return coded tensors of a few rows of one item: their other dims are those of all."""
        assert self.windowed is not None
        rows = torch.zeros((1, heads, self.windowed.waits + 2 * self.windowed.unit, width))
        state = self.stored(rows.to(dtype), torch.zeros(rows.shape[:3]))
        return {name: state[name] for name in self.windowed.lengths(self.side)}

    def read(
        self,
        dtype: torch.dtype,
        handed: Tensor,
        coded: Mapping[str, Tensor],
        constants: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """Return the rows of what is handed on and of what was coded before it."""
        own = self.constants if constants is None else constants
        state = {self.handed_name: handed, **coded}
        return self.format.dequantize(self.side, state, own).to(dtype)

    def alone(self, handed: Tensor) -> Tensor:
        """Return the rows of what prefill hands on, before anything of it was coded in blocks."""
        if self.windowed is not None:
            return handed.float()
        return self.read(torch.float32, handed, {})
