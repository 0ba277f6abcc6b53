"""Stride: a control. Evenly spaced visual tokens.

Of N candidates in order, K are kept: number r is, iff floor((r+1)·K/N) > floor(r·K/N).  Numbers
count candidates, not rows, so text between images and run-time positions do not matter; where rows
leave in groups, groups are counted.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.method import Method, Placement, Setting, Taps
from tokopt.passes.methods.random import schedule as control_schedule
from tokopt.passes.methods.rows import rank_of


def score(taps: Taps) -> Tensor:
    """Return 1 at the ``keep`` rows that stay, 0 elsewhere, fp32 ``[B, N]``."""
    group, keep = taps.group, taps.keep // taps.group
    number = rank_of(taps.candidates) // group
    count = (taps.candidates.long().sum(1, keepdim=True) // group).clamp_min(1)
    return ((number + 1) * keep // count > number * keep // count).float()


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """As the other control: the end of a tower that feeds a decoder, else the entry."""
    return control_schedule(setting)


METHOD = Method(
    name="stride",
    paper="control",
    roles=frozenset({"vision", "decoder", "resampler"}),
    score=score,
    schedule=schedule,
    notes="evenly spaced tokens",
)
