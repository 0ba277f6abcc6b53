"""VidKV: keys in 2 bits where channels vary much and in 1 where they do not; values in 1.58 bits.

Both by channel in groups of tokens.  The calm channels of keys are turned by an orthogonal
transform (the paper's Fourier transform, in its real orthonormal form) and keep a sign and the
group's mean size: ``+-s``.  Values are -s, 0 or s, where 0 is what is below half the mean size and
s the mean size of the others; salient rows have 2 bits.  The paper's released code gives 0 or s for
the signs and leaves s out for the values; these are what its formulas say.  Which channels vary is
calibrated, and by pairs that positions turn into each other, so it holds for long prompts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.kv.affine import coded, decoded
from tokopt.passes.kv.checks import check_choice, check_multiple
from tokopt.passes.kv.format import WINDOW, Format, Side, State
from tokopt.passes.kv.kivi import Kivi
from tokopt.passes.kv.pools import together
from tokopt.passes.kv.reach import reach_of
from tokopt.passes.kv.rotation import fourier
from tokopt.passes.kv.samples import Samples
from tokopt.passes.kv.signs import coded_signs, coded_trits, decoded_signs, decoded_trits
from tokopt.passes.kv.windowed import Windowed


@dataclass(frozen=True)
class VidKv(Windowed):
    """Keys: ``hard.*`` (2 bits) and ``easy.*`` (1 bit).  Values: ``salient.*`` and ``rest.*``.

    ``codes`` are uint8 ``[B, H, T, bytes]``, ``scale`` and ``zero`` fp16 ``[B, H, T / group, ...]``
    of each channel.  Constants of keys: ``order`` int64 ``[1, H, 1, D]``, the channels, hard ones
    first.
    """

    hard: float = 0.5
    group: int = 32
    window: int = 128
    share: float = 0.2

    name = "vidkv"
    title = "VidKV"
    source = "arXiv 2503.16257; 1.5 bits of keys, 1.58 of values, 20 % of rows in 2 bits"
    tolerance = 0.75
    pooled = True

    def __post_init__(self) -> None:
        check_choice(self.name, "group", self.group, (8, 16, 32, 64, 128))
        check_multiple(self.name, "the window", self.window, self.group)
        if not (0 < self.hard < 1 and 0 < self.share < 1) or self.window < self.group:
            raise InputError(
                f"vidkv: hard = {self.hard:g}, share = {self.share:g}, window = {self.window}",
                expected="shares between 0 and 1, and a window of at least one group",
            )

    def finer(self) -> Format:
        """Return 2 bits with a zero in every group."""
        return Kivi(2, self.group, self.window)

    def check_width(self, side: Side, width: int) -> None:
        """Raise ``InputError`` where the codes of a row fill no bytes."""
        check_multiple(self.name, f"the head width of {side}s", width, 4)
        if side == "key":
            check_multiple(self.name, "the number of hard channels", self._hard(width), 4)
            check_multiple(self.name, "the number of calm channels", width - self._hard(width), 8)

    def calibrate(self, side: Side, samples: Samples) -> State:
        """Return the ``order`` of the channels of keys; values have no constants."""
        self.check_width(side, samples.width)
        if side == "value":
            return {}
        reach = reach_of(samples).reach
        ranked = reach.sort(dim=3, descending=True, stable=True).indices
        count = self._hard(samples.width)
        parts = [ranked[..., :count].sort().values, ranked[..., count:].sort().values]
        return {"order": torch.cat(parts, 3)}

    def arrange(self, rows: Tensor, salience: Tensor | None) -> Tensor:
        """Return salient rows first."""
        assert salience is not None
        return together(rows, salience, self._salient(rows.shape[2]) * self.group)

    @property
    def waits(self) -> int:
        """None: appended rows are coded as soon as they are enough."""
        return 0

    @property
    def unit(self) -> int:
        """How many appended rows are coded at once."""
        return self.window

    @property
    def waiting(self) -> int:
        """Rows of a prompt that fill no group."""
        return self.group - 1

    @property
    def counts(self) -> Mapping[str, int]:
        """The groups of the pools."""
        return {"salient": self.group, "rest": self.group}

    def lengths(self, side: Side) -> Mapping[str, Mapping[str, int]]:
        """Codes by row, scales and zeros by group; keys are in one pool by channel."""
        pools = {"salient": ["salient"], "rest": ["rest"]}
        if side == "key":
            pools = {"hard": [*pools], "easy": [*pools]}
        found: dict[str, Mapping[str, int]] = {}
        for pool, of in pools.items():
            found[f"{pool}.codes"] = dict.fromkeys(of, self.group)
            found[f"{pool}.scale"] = dict.fromkeys(of, 1)
            if pool in ("salient", "hard"):
                found[f"{pool}.zero"] = dict.fromkeys(of, 1)
        return found

    def counted(self, side: Side) -> Mapping[str, int]:
        """The codes of hard channels, or of both pools."""
        return {"hard.codes": 1} if side == "key" else {"salient.codes": 1, "rest.codes": 1}

    def block(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        """Return the coded rows; those of values are none of them salient."""
        return self._block(side, rows, constants, rows.shape[2] // self.group, 0)

    def dequantize(
        self, side: Side, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> Tensor:
        """Return salient rows, the rest, those that wait."""
        width = state[WINDOW].shape[3]
        rows = self._keys(state, constants) if side == "key" else self._values(state, width)
        return torch.cat([rows, state[WINDOW].float()], 2)

    def _quantize(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        assert salience is not None
        groups, salient = rows.shape[2] // self.group, self._salient(rows.shape[2])
        rows = together(rows, salience, salient * self.group)
        coded_rows = self._block(side, rows, constants, groups, salient)
        return {**coded_rows, WINDOW: rows[:, :, groups * self.group :]}

    def _hard(self, width: int) -> int:
        return int(width * self.hard)

    def _salient(self, rows: int) -> int:
        """Return how many groups are salient: a share, rounded up; exact, of free sizes as well."""
        share = Fraction(self.share).limit_denominator(1000)
        more = share.denominator - 1  # not by a negative number: targets round those otherwise
        return (rows // self.group * share.numerator + more) // share.denominator

    def _block(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], count: int, salient: int
    ) -> State:
        """Code ``count`` groups, the rows in front; ``salient`` ones of values in 2 bits."""
        groups = rows[:, :, : count * self.group].unflatten(2, (count, self.group))
        if side == "value":
            fine = coded(groups[:, :, :salient].float(), (3,), 2, rows.dtype)
            rest = coded_trits(groups[:, :, salient:], 3)
            return {**_named("salient", fine), **_named("rest", rest)}
        if "order" not in constants:
            raise InputError(
                "vidkv does not know which channels of the keys vary",
                expected="the constants that calibrate() returns",
            )
        order = constants["order"].unsqueeze(2).expand(*groups.shape)
        wide = self._hard(rows.shape[3])
        hard, easy = groups.gather(4, order).split([wide, rows.shape[3] - wide], 4)
        turned = easy.float() @ fourier(easy.shape[4])
        fine = coded(hard.float(), (3,), 2, rows.dtype)
        return {**_named("hard", fine), **_named("easy", coded_signs(turned, 3, rows.dtype))}

    def _keys(self, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]) -> Tensor:
        hard = decoded(*_grouped(state, "hard", self.group), 2)
        turned = decoded_signs(*_grouped(state, "easy", self.group)[:2])
        rows = torch.cat([hard, turned @ fourier(turned.shape[4]).T], 4).flatten(2, 3)
        back = constants["order"].argsort(3)
        return rows.gather(3, back.expand(*rows.shape))

    def _values(self, state: Mapping[str, Tensor], width: int) -> Tensor:
        fine = decoded(*_grouped(state, "salient", self.group), 2)
        rest = decoded_trits(*_grouped(state, "rest", self.group)[:2], width)
        return torch.cat([fine, rest], 2).flatten(2, 3)


def _named(pool: str, found: tuple[Tensor, ...]) -> State:
    """Return tensors of groups ``[B, H, groups, tokens or 1, ...]`` as they are stored."""
    names = ("codes", "scale", "zero")[: len(found)]
    return {f"{pool}.{n}": v.flatten(2, 3) for n, v in zip(names, found, strict=True)}


def _grouped(state: Mapping[str, Tensor], pool: str, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the stored tensors in groups again; the zero is the scale where there is none."""
    scale = state[f"{pool}.scale"]
    zero = state.get(f"{pool}.zero", scale)
    codes = state[f"{pool}.codes"].unflatten(2, (scale.shape[2], group))
    return codes, scale.unsqueeze(3), zero.unsqueeze(3)


FORMAT = VidKv()
