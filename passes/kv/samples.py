"""Samples: what calibration saw of one side of one layer, and how positions turn its keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.kv.checks import check_rows


@dataclass(frozen=True)
class Rotary:
    """Which channels of a key turn into each other as its position grows.

    The first ``width`` channels turn in pairs ``(i, i + width/2)``, or ``(2i, 2i+1)`` where
    ``interleaved``.  ``frequencies`` ``[width/2]`` is each pair's angle per position and
    ``positions`` how many positions there will be; without them nothing is known but the pairs.
    """

    width: int
    interleaved: bool = False
    frequencies: Tensor | None = None
    positions: int = 0

    def pairs(self, width: int) -> tuple[Tensor, Tensor]:
        """Return the first and the second channel of every pair of heads of a width.

        Raises ``InputError`` where such heads have no such pairs.
        """
        if not 0 < self.width <= width or self.width % 2:
            raise InputError(
                f"heads of width {width} cannot have {self.width} channels turned in pairs",
                expected=f"an even number of at most {width}",
            )
        if self.interleaved:
            return torch.arange(0, self.width, 2), torch.arange(1, self.width, 2)
        return torch.arange(self.width // 2), torch.arange(self.width // 2, self.width)


@dataclass(frozen=True)
class Samples:
    """Rows ``[B, H, T, D]`` of one side of one layer, one tensor a calibration run.

    ``rotary`` is given for keys whose positions are applied by rotation, None for all else.
    ``positions`` are those of the rows, ``[B, T]`` each, or ``[B, T, pairs]`` where pairs have
    positions of their own; without them no centre of turning channels can be told.
    """

    rows: Sequence[Tensor]
    rotary: Rotary | None = None
    positions: Sequence[Tensor] = ()

    def __post_init__(self) -> None:
        if not self.rows or not any(rows.numel() for rows in self.rows):
            raise InputError("calibration saw no rows", expected="at least one run of the model")
        for rows in self.rows:
            check_rows(rows, "calibration")
        if len({(rows.shape[1], rows.shape[3]) for rows in self.rows}) != 1:
            raise InputError("calibration rows differ in heads or width", expected="one layer's")
        if self.rotary is not None:
            self.rotary.pairs(self.width)

    @property
    def width(self) -> int:
        """The head width."""
        return self.rows[0].shape[3]

    def flat(self) -> Tensor:
        """Return all rows as fp32 ``[H, rows, D]``."""
        flat = [rows.float().transpose(0, 1).flatten(1, 2) for rows in self.rows]
        return torch.cat(flat, 1)

    def turns(self) -> Tensor | None:
        """Return the angle of each pair at each row of ``flat``, ``[rows, pairs]``, or None."""
        if self.rotary is None or self.rotary.frequencies is None or not self.positions:
            return None
        by_pair = [p if p.ndim == 3 else p.unsqueeze(-1) for p in self.positions]
        shapes = [tuple(p.shape[:2]) for p in by_pair]
        if shapes != [(rows.shape[0], rows.shape[2]) for rows in self.rows]:
            raise InputError("positions of calibration rows are not as many as the rows")
        frequencies = self.rotary.frequencies.double()
        return torch.cat([(p.double() * frequencies).flatten(0, 1) for p in by_pair])
