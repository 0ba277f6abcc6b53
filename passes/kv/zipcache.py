"""ZipCache: salient rows in 4 bits, the rest in 2; keys by channel, values by token.

Keys have a scale and zero per channel over all rows of a pool.  Values are divided by
``c = sqrt(max |x|)`` of each channel first, which takes the outlier channels out of the rows, and
then have a scale and zero per row over all heads ("channel-separable token-wise").  Rows are
salient per head, by ``salience.py``.  New rows wait until there are ``gap``; each such segment has
scales of its own, where the paper's code makes those of the whole cache anew and codes it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.kv.affine import coded, decoded
from tokopt.passes.kv.checks import check_multiple
from tokopt.passes.kv.format import WINDOW, Format, Side, State, grown
from tokopt.passes.kv.int8 import Int8
from tokopt.passes.kv.pools import parted, together
from tokopt.passes.kv.windowed import Windowed

POOLS = {"salient": 4, "rest": 2}
"""The two pools, and the bits of their codes."""


@dataclass(frozen=True)
class ZipCache(Windowed):
    """Of each pool P rows in S segments; ``share`` of a prompt's rows are in 4 bits.

    ``codes`` are uint8 ``[B, H, P, D bits / 8]``.  In half precision are ``scale`` and ``zero`` of
    keys ``[B, H, S, D]``, of values ``[B, 1, P, 1]``, and their ``channel`` ``[B, H, S, D]``.
    """

    share: float = 0.6
    gap: int = 100

    name = "zipcache"
    title = "ZipCache"
    source = "arXiv 2405.14256; 60 % in 4 bits, 100 new rows at a time"
    tolerance = 0.6
    pooled = True
    ranks = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1 or not 0 < self._salient(self.gap) < self.gap:
            raise InputError(
                f"zipcache: share = {self.share:g}, gap = {self.gap}",
                expected="a share between 0 and 1 that leaves rows of a gap in either pool",
            )

    def finer(self) -> Format:
        """Return INT8."""
        return Int8()

    def check_width(self, side: Side, width: int) -> None:
        """Raise ``InputError`` where 2-bit codes fill no bytes."""
        check_multiple(self.name, "the head width", width, 4)

    def arrange(self, rows: Tensor, salience: Tensor | None) -> Tensor:
        """Return salient rows first."""
        assert salience is not None
        return together(rows, salience, self._salient(rows.shape[2]))

    @property
    def waits(self) -> int:
        """None: appended rows are coded as soon as they are enough."""
        return 0

    @property
    def unit(self) -> int:
        """How many appended rows are coded at once."""
        return self.gap

    @property
    def waiting(self) -> int:
        """None of a prompt's rows."""
        return 0

    @property
    def counts(self) -> Mapping[str, int]:
        """The rows of the pools, and segments."""
        return {"salient": 1, "rest": 1, "segments": 0}

    def lengths(self, side: Side) -> Mapping[str, Mapping[str, int]]:
        """Codes by row; scales of keys by segment, of values by row with channels by segment."""
        names = ("codes",) if side == "key" else ("codes", "scale", "zero")
        found = {f"{pool}.{name}": {pool: 1} for pool in POOLS for name in names}
        by_segment = ("scale", "zero") if side == "key" else ("channel",)
        return found | {f"{pool}.{name}": {"segments": 1} for pool in POOLS for name in by_segment}

    def counted(self, side: Side) -> Mapping[str, int]:
        """The codes of both pools."""
        return {f"{pool}.codes": 1 for pool in POOLS}

    def block(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        """Return one segment after the other."""
        count = rows.shape[2]
        if salience is None or salience.shape[2] < count or salience.shape[:2] != rows.shape[:2]:
            raise InputError(
                f"{count} rows leave the window of zipcache, and their salience is missing",
                expected="a salience of all rows of the window and the new ones",
            )
        parts = [slice(start, start + self.gap) for start in range(0, count, self.gap)]
        state = self._segment(side, rows[:, :, parts[0]], salience[:, :, parts[0]])
        for part in parts[1:]:
            state = grown(state, self._segment(side, rows[:, :, part], salience[:, :, part]))
        return state

    def dequantize(
        self, side: Side, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> Tensor:
        """Return salient rows, the rest, those that wait."""
        later = {"salient": self._salient(self.gap)}
        later["rest"] = self.gap - later["salient"]
        pools = [self._pool(side, state, pool, later[pool]) for pool in POOLS]
        return torch.cat([*pools, state[WINDOW].float()], 2)

    def _quantize(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        count = rows.shape[2]
        if not 0 < self._salient(count) < count or salience is None:
            raise InputError(f"zipcache: {count} rows leave one of its two pools empty")
        return {**self._segment(side, rows, salience), WINDOW: rows[:, :, count:]}

    def _salient(self, rows: int) -> int:
        rest = 1 - Fraction(self.share).limit_denominator(1000)  # exact, of free sizes as well
        return rows - rows * rest.numerator // rest.denominator

    def _segment(self, side: Side, rows: Tensor, salience: Tensor) -> State:
        state: State = {}
        pools = parted(rows, salience, self._salient(rows.shape[2]))
        for (pool, bits), part in zip(POOLS.items(), pools, strict=True):
            values, across = part.float(), (2,) if side == "key" else (1, 3)
            if side == "value":
                channel = values.abs().amax(2, keepdim=True).sqrt().to(rows.dtype)
                state[f"{pool}.channel"] = channel
                values = values / torch.where(channel > 0, channel.float(), 1.0)
            found = coded(values, across, bits, rows.dtype)
            for name, value in zip(("codes", "scale", "zero"), found, strict=True):
                state[f"{pool}.{name}"] = value
        return state

    def _pool(self, side: Side, state: Mapping[str, Tensor], pool: str, later: int) -> Tensor:
        """Return the rows of a pool; each segment but the first has ``later`` of them."""
        codes, scale, zero = (state[f"{pool}.{name}"] for name in ("codes", "scale", "zero"))
        count = codes.shape[2]
        if side == "key":
            scale, zero = _spread(scale, count, later), _spread(zero, count, later)
            return decoded(codes, scale, zero, POOLS[pool])
        channel = _spread(state[f"{pool}.channel"], count, later).float()
        return decoded(codes, scale, zero, POOLS[pool]) * channel


def _spread(segments: Tensor, count: int, later: int) -> Tensor:
    """Return what segments have in common for each of ``count`` rows."""
    first = count - (segments.shape[2] - 1) * later
    lead = segments[:, :, :1].expand(-1, -1, first, -1)
    return torch.cat([lead, segments[:, :, 1:].repeat_interleave(later, 2)], 2)


FORMAT = ZipCache()
