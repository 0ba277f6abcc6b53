"""INT4: 4 bits per value, symmetric around a calibrated centre, a calibrated scale per channel.

The layout is ONNX Runtime's: the even channel in the low nibble, 8 stands for 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokopt.passes.kv.checks import check_multiple
from tokopt.passes.kv.format import Format, Side
from tokopt.passes.kv.int8 import Int8
from tokopt.passes.kv.packing import pack, unpack
from tokopt.passes.kv.static import Static


@dataclass(frozen=True)
class Int4(Static):
    """Codes uint8 ``[B, H, T, D / 2]``, a nibble being the step + 8; the reach is 7."""

    name = "int4"
    title = "INT4, static per channel"
    source = "ONNX Runtime GroupQueryAttention, PER_CHANNEL, with static centring"
    tolerance = 0.3
    most = 7.0

    def finer(self) -> Format:
        """Return 8 bits."""
        return Int8()

    def check_width(self, side: Side, width: int) -> None:
        """Raise ``InputError`` for an odd width."""
        check_multiple(self.name, "the head width", width, 2)

    def encode(self, steps: Tensor) -> Tensor:
        """Return packed codes, ties to the even one."""
        return pack(steps.round().clamp(-8, 7) + 8, 4)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the steps."""
        return unpack(codes, 4).float() - 8


FORMAT = Int4()
