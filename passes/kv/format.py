"""Format: how the rows of one side (keys or values) of one layer's cache are stored in few bits.

What is stored is a plain mapping of tensors (packed codes, scales, zeros, rows of the window that
are not coded yet), each growing along dim 2 only.  So the bits a format costs are the bytes of its
tensors, and nothing that was coded is ever coded again: errors do not add up and a step costs what
is new.  All is plain torch with static shapes; layouts follow from shapes alone.

Shapes: B batch, H heads of keys and values, T tokens, D head width.  Keys have their positions
applied (RoPE).  Attention of a decoded token does not depend on the order of cached rows, so a
format may store salient rows apart; both sides of a layer then do so by the same salience.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.kv.checks import check_multiple, check_rows
from tokopt.passes.kv.samples import Samples

Side = Literal["key", "value"]
State = dict[str, Tensor]
"""Stored tensors, or the constants of a calibration, by name."""

WINDOW = "window"
"""The name of the rows that are not coded yet, ``[B, H, W, D]`` in half precision."""


@dataclass(frozen=True)
class Format(ABC):
    """A format.  ``name`` is its file's; settings are fields of the dataclass it is.

    ``tolerance``: by how much of its size a head's values may change on calibration rows, in the
    mean; a head with more has outliers that this format cannot hold (``headroom.py``).  ``pooled``:
    whether salient rows are stored apart, so that ``quantize`` wants a salience.  ``rowwise``: the
    name of the one tensor that is stored, where each row is alone in it; None for other formats.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    tolerance: ClassVar[float]
    pooled: ClassVar[bool] = False
    rowwise: ClassVar[str | None] = None

    @property
    def text(self) -> str:
        """The format as ``find_format`` reads it: its name, and settings that are not published."""
        settings = [(f.name, getattr(self, f.name), f.default) for f in fields(self)]
        told = " ".join(f"{name}={value}" for name, value, usual in settings if value != usual)
        return f"{self.name}{{{told}}}" if told else self.name

    def finer(self) -> Format | None:
        """Return the format to use where this one loses too much; None: there is none."""
        return None

    def calibrate(self, side: Side, samples: Samples) -> State:
        """Return the constants of a side, from calibration rows; most have none.

        Raises ``InputError`` where the format cannot store such rows.
        """
        self.check_width(side, samples.width)
        return {}

    def quantize(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        """Return a prompt's rows ``[B, H, T, D]`` as stored; ``salience`` is ``[B, H, T]``.

        Raises ``InputError`` for rows that are not finite (outside of a trace), of a width or
        number the format cannot store, or without the constants it wants.
        """
        check_rows(rows, self.name)
        self.check_width(side, rows.shape[3])
        if self.pooled:
            _check_salience(salience, rows, rows.shape[2], self.name)
        return self._quantize(side, self.prepared(rows), constants, salience)

    def append(
        self,
        side: Side,
        state: Mapping[str, Tensor],
        rows: Tensor,
        constants: Mapping[str, Tensor],
        salience: Tensor | None,
    ) -> State:
        """Return a state with further rows; what was coded stays as it was, bit for bit.

        ``salience`` is that of the window's rows and the new ones, ``[B, H, W + T]``; None where
        no pooled rows leave the window.
        """
        check_rows(rows, self.name)
        _check_next(state, rows, self.name)
        return self._append(side, state, self.prepared(rows), constants, salience)

    def prepared(self, rows: Tensor) -> Tensor:
        """Return what codes are made of: rows in half precision, as a window holds them."""
        return half(rows)

    @abstractmethod
    def dequantize(
        self, side: Side, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the rows, fp32 ``[B, H, T, D]``, in the order in which they are stored."""

    def arrange(self, rows: Tensor, salience: Tensor | None) -> Tensor:
        """Return a prompt's rows in the order in which ``dequantize`` gives them back."""
        return rows

    def check_width(self, side: Side, width: int) -> None:
        """Raise ``InputError`` where heads of this width cannot be stored."""
        check_multiple(self.name, "the head width", width, 1)

    @abstractmethod
    def _quantize(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State: ...

    def _append(
        self,
        side: Side,
        state: Mapping[str, Tensor],
        rows: Tensor,
        constants: Mapping[str, Tensor],
        salience: Tensor | None,
    ) -> State:
        return grown(state, self._quantize(side, rows, constants, None))


def half(rows: Tensor) -> Tensor:
    """Return rows in half precision."""
    return rows if rows.dtype == torch.bfloat16 else rows.to(torch.float16)


def grown(state: Mapping[str, Tensor], more: Mapping[str, Tensor]) -> State:
    """Return stored tensors with more behind them."""
    return {name: torch.cat([value, more[name]], 2) for name, value in state.items()}


def _check_next(state: Mapping[str, Tensor], rows: Tensor, name: str) -> None:
    for kept in (WINDOW, "rows", "codes"):
        if kept in state and (kept == WINDOW or WINDOW not in state):
            batch, heads, _, width = state[kept].shape
            wanted = [batch, heads, rows.shape[2], rows.shape[3] if kept == "codes" else width]
            if list(rows.shape) != wanted:
                raise InputError(
                    f"{name}: rows {list(rows.shape)} do not go behind those that are stored",
                    expected=f"{wanted}: the same items, heads and head width",
                )


def _check_salience(salience: Tensor | None, rows: Tensor, count: int, name: str) -> None:
    wanted = (*rows.shape[:2], count)
    if salience is None or tuple(salience.shape) != wanted:
        found = "none" if salience is None else list(salience.shape)
        raise InputError(
            f"{name} stores salient rows apart and wants a salience, and got {found}",
            expected=f"{list(wanted)}: a number for each head and row",
        )
