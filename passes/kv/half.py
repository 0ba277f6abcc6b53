"""Half: rows as they are in half precision, 16 bits.  The neutral format, and the last resort."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from tokopt.passes.kv.format import Format, Side, State


@dataclass(frozen=True)
class Half(Format):
    """Rows as they are."""

    name = "half"
    title = "Half precision"
    source = "IEEE 754 binary16, or bfloat16 where the model has that"
    tolerance = 1.0
    rowwise = "rows"

    def dequantize(
        self, side: Side, state: Mapping[str, Tensor], constants: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the rows in their order."""
        return state["rows"].float()

    def _quantize(
        self, side: Side, rows: Tensor, constants: Mapping[str, Tensor], salience: Tensor | None
    ) -> State:
        return {"rows": rows}


FORMAT = Half()
