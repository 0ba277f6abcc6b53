"""Static: one calibrated scale and centre per channel, for rows of all positions.

Nothing but the codes is stored per token, rows need no window and no neighbour, and the layout is
what ONNX Runtime's GroupQueryAttention reads.  Values beyond the calibrated reach are clamped.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.kv.format import Format, Side, State
from tokopt.passes.kv.reach import reach_of
from tokopt.passes.kv.samples import Samples


class Static(Format):
    """A format of calibrated scales; ``most`` is the largest code, which the reach becomes.

    ``around_mean``: whether codes are finest near the centre, so that it should be the mean.
    """

    most: ClassVar[float]
    around_mean: ClassVar[bool] = False
    rowwise = "codes"

    def prepared(self, rows: Tensor) -> Tensor:
        """Return the rows: none waits in a window, in half precision."""
        return rows

    def calibrate(self, side: Side, samples: Samples) -> State:
        """Return ``centre`` and ``scale``, fp32 ``[1, H, 1, D]``."""
        self.check_width(side, samples.width)
        found = reach_of(samples, self.around_mean)
        return {"centre": found.centre, "scale": found.reach / self.most}

    @abstractmethod
    def encode(self, steps: Tensor) -> Tensor:
        """Return what is stored of values in steps, fp32 ``[B, H, T, D]``."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Return the steps of what is stored, fp32."""

    def dequantize(
        self, side: Side, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the rows in their order."""
        return self.decode(state["codes"]) * constants["scale"] + constants["centre"]

    def _quantize(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        if "scale" not in constants or "centre" not in constants:
            raise InputError(
                f"{self.name} has no scale for the {side}s of this layer",
                expected="the constants that calibrate() returns",
            )
        wanted = (1, rows.shape[1], 1, rows.shape[3])
        for name in ("centre", "scale"):
            if tuple(constants[name].shape) != wanted:
                raise InputError(
                    f"{self.name}: the {name} of the {side}s is {list(constants[name].shape)}",
                    expected=f"{list(wanted)}, that of this layer's heads",
                )
        return {"codes": self.encode((rows.float() - constants["centre"]) / constants["scale"])}
