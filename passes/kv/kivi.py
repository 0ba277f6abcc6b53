"""KIVI: keys by channel in groups of tokens, values by token in groups of channels.

Keys have channels that are large in every token, values have none: so keys get a scale and zero per
channel and ``group`` tokens, values per token and ``group`` channels.  Keys are coded ``window``
rows at a time; values keep the last ``window`` rows and code one a step.
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
    """``codes`` uint8 ``[B, H, T, D bits / 8]``; ``scale``, ``zero`` fp16 (or bf16).

    Those of keys are ``[B, H, T / group, D]``, those of values ``[B, H, T, D / group]``.
    """

    bits: int = 2
    group: int = 32
    window: int = 128

    name = "kivi"
    title = "KIVI"
    source = "arXiv 2402.02750; groups of 32 and a window of 128 as in the paper"
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

    def leaving(self, side: Side, waiting: int) -> int:
        """Return how many rows are coded now."""
        if not self.window:
            return waiting - (waiting % self.group if side == "key" else 0)
        return (
            waiting // self.window * self.window if side == "key" else max(waiting - self.window, 0)
        )

    def block(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        """Return codes, scales and zeros."""
        across = 2 if side == "key" else 3
        groups = rows.float().unflatten(across, (rows.shape[across] // self.group, self.group))
        codes, scale, zero = coded(groups, (across + 1,), self.bits, rows.dtype)
        return {
            "codes": codes.flatten(across, across + 1),
            "scale": scale.squeeze(across + 1),
            "zero": zero.squeeze(across + 1),
        }

    def dequantize(
        self, side: Side, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the rows in their order."""
        across = 2 if side == "key" else 3
        count = state["scale"].shape[across]
        per_group = self.group if side == "key" else self.group * self.bits // 8
        codes = state["codes"].unflatten(across, (count, per_group))
        scale, zero = (state[name].unsqueeze(across + 1) for name in ("scale", "zero"))
        rows = decoded(codes, scale, zero, self.bits).flatten(across, across + 1)
        return torch.cat([rows, state[WINDOW].float()], 2)


FORMAT = Kivi()
