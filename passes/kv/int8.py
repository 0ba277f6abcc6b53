"""INT8: 8 bits per value, symmetric around a calibrated centre, a calibrated scale per channel.

Keys' scales hold at every position (``reach.py``).  No bits but the codes are spent per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.passes.kv.format import Format
from tokopt.passes.kv.half import Half
from tokopt.passes.kv.static import Static


@dataclass(frozen=True)
class Int8(Static):
    """Codes int8 ``[B, H, T, D]`` in -128 .. 127; the calibrated reach is 127."""

    name = "int8"
    title = "INT8, static per channel"
    source = "ONNX Runtime GroupQueryAttention, PER_CHANNEL, with static centring"
    tolerance = 0.05
    most = 127.0

    def finer(self) -> Format:
        """Return half precision."""
        return Half()

    def encode(self, steps: Tensor) -> Tensor:
        """Return codes, ties to the even one."""
        return steps.round().clamp(-128, 127).to(torch.int8)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the steps."""
        return codes.float()


FORMAT = Int8()
