"""FP8: a float of 8 bits (E4M3, no infinity) per value, with a calibrated scale per channel.

Its step grows with the value, so it keeps small values next to an outlier that INT8 rounds away.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.passes.kv.format import Format
from tokopt.passes.kv.half import Half
from tokopt.passes.kv.static import Static


@dataclass(frozen=True)
class Fp8(Static):
    """Codes float8_e4m3fn ``[B, H, T, D]``; the calibrated reach is 448, the largest there is."""

    name = "fp8"
    title = "FP8 (E4M3), static per channel"
    source = "OCP 8-bit floating point, E4M3; ONNX Runtime GroupQueryAttention (CUDA)"
    tolerance = 0.1
    most = 448.0
    around_mean = True

    def finer(self) -> Format:
        """Return half precision."""
        return Half()

    def encode(self, steps: Tensor) -> Tensor:
        """Return codes; what is beyond the largest is clamped, for E4M3 would make NaN of it."""
        return steps.clamp(-self.most, self.most).to(torch.float8_e4m3fn)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the steps."""
        return codes.float()


FORMAT = Fp8()
