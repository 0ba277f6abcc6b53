"""KIVI: keys by channel in groups of tokens, values by token in groups of channels.

Keys have channels that are large in every token, values have none: so keys get a scale and zero
per channel and ``group`` tokens, values per token and ``group`` channels.  The last ``window`` rows
wait in half precision, and up to ``group - 1`` more until a group is full.  The paper keeps as many
of the values and codes one a step, and of the keys those that fill no window yet, on average half
of them: here both sides of a layer leave together, and no row is coded that the paper would keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tokopt.passes.kv.affine import coded, decoded
from tokopt.passes.kv.checks import check_choice, check_multiple
from tokopt.passes.kv.format import WINDOW, Format, Side, State
from tokopt.passes.kv.int8 import Int8
from tokopt.passes.kv.windowed import Windowed


@dataclass(frozen=True)
class Kivi(Windowed):
    """``codes`` are uint8 ``[B, H, G, group, D bits / 8]``, of G groups.

    ``scale`` and ``zero`` are fp16 (or bf16); those of keys ``[B, H, G, 1, D]``, of values
    ``[B, H, G, group, D / group]``.
    """

    bits: int = 2
    group: int = 32
    window: int = 128

    name = "kivi"
    title = "KIVI"
    source = "arXiv 2402.02750; groups of 32 and a window of 128 as in the paper, of both sides"
    tolerance = 0.6

    def __post_init__(self) -> None:
        check_choice(self.name, "bits", self.bits, (2, 4))
        check_choice(self.name, "group", self.group, (8, 16, 32, 64, 128))
        check_multiple(self.name, "the window", self.window, self.group)

    def finer(self) -> Format:
        """Return 4 bits for 2, then INT8."""
        return replace(self, bits=4) if self.bits == 2 else Int8()

    def check_width(self, side: Side, width: int) -> None:
        """Raise ``InputError`` where channels fill no groups, or codes no bytes."""
        of = self.group if side == "value" else 8 // self.bits
        check_multiple(self.name, f"the head width of {side}s", width, of)

    @property
    def waits(self) -> int:
        """The window."""
        return self.window

    @property
    def unit(self) -> int:
        """A group of rows."""
        return self.group

    @property
    def counts(self) -> Mapping[str, int]:
        """Groups of rows."""
        return {"groups": self.group}

    def lengths(self, side: Side) -> Mapping[str, Mapping[str, int]]:
        """All by group."""
        return {key: {"groups": 1} for key in ("codes", "scale", "zero")}

    def counted(self, side: Side) -> Mapping[str, int]:
        """The codes."""
        return {"codes": self.group}

    def block(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        """Return codes, scales and zeros."""
        groups = rows.float().unflatten(2, (rows.shape[2] // self.group, self.group))
        if side == "key":
            codes, scale, zero = coded(groups, (3,), self.bits, rows.dtype)
            return {"codes": codes, "scale": scale, "zero": zero}
        parts = groups.unflatten(4, (rows.shape[3] // self.group, self.group))
        codes, scale, zero = coded(parts, (5,), self.bits, rows.dtype)
        return {"codes": codes.flatten(4), "scale": scale.squeeze(5), "zero": zero.squeeze(5)}

    def dequantize(
        self, side: Side, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the rows in their order."""
        codes, scale, zero = (state[name] for name in ("codes", "scale", "zero"))
        if side == "value":
            codes = codes.unflatten(4, (scale.shape[4], self.group * self.bits // 8))
            scale, zero = scale.unsqueeze(5), zero.unsqueeze(5)
        rows = decoded(codes, scale, zero, self.bits)
        rows = (rows if side == "key" else rows.flatten(4)).flatten(2, 3)
        return torch.cat([rows, state[WINDOW].float()], 2)


FORMAT = Kivi()
