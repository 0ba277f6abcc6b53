"""Headroom: the format a side of a layer gets; a finer one where its outliers ask for that.

A few large channels or tokens stretch the step until most values are rounded to one code.  That
shows on the calibration rows themselves: a round trip changes a head's values by more of their
size than the format states.  Then the next finer format is tried, and the reason is said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.ir.errors import InternalError
from tokopt.passes.kv.format import Format, Side, State
from tokopt.passes.kv.samples import Samples


@dataclass(frozen=True)
class Chosen:
    """A format, its constants, and why it is not the one that was asked for (else empty)."""

    format: Format
    constants: State
    note: str = ""


def chosen(wanted: Format, side: Side, samples: Samples) -> Chosen:
    """Return the wanted format calibrated, or the first finer one that holds the rows."""
    reasons: list[str] = []
    format: Format | None = wanted
    while format is not None:
        constants = format.calibrate(side, samples)
        losses = torch.stack([lost(format, side, rows, constants) for rows in samples.rows])
        loss, head = (float(one) for one in losses.amax(0).max(0))
        if loss <= format.tolerance:
            note = f"{'; '.join(reasons)}: {format.name} instead" if reasons else ""
            return Chosen(format, constants, note)
        reasons.append(
            f"{format.name} is off by {loss:.0%} in the {side}s of head {head:.0f} (outliers; "
            f"{format.tolerance:.0%} is usual)"
        )
        format = format.finer()
    raise InternalError("half precision loses what it stores", where=f"{side}s")


def lost(format: Format, side: Side, rows: Tensor, constants: Mapping[str, Tensor]) -> Tensor:
    """Return each head's mean error by its mean size without the largest twentieth, ``[H]``.

    A norm would not do: an outlier that comes back is most of it, whatever else is lost.
    """
    salience = rows.float().norm(dim=3) if format.pooled else None
    state = format.quantize(side, rows, constants, salience)
    before = format.arrange(rows.float(), salience)
    error = (format.dequantize(side, state, constants) - before).abs().mean((0, 2, 3))
    size = before.abs().transpose(0, 1).flatten(1)
    most = size.kthvalue(max(int(0.95 * size.shape[1]), 1), 1, keepdim=True).values
    return error / size.minimum(most).mean(1).clamp(min=torch.finfo(torch.float32).tiny)
