"""Stride: a control. Evenly spaced visual tokens.

Of N candidates in order, K are kept: number r is, iff floor((r+1)·K/N) > floor(r·K/N).  Numbers
count candidates, not rows, so text between images and run-time positions do not matter; where rows
leave in groups, groups are counted.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import group_of
from tokopt.passes.methods.schedules import before_decoder


def score(taps: Taps) -> Tensor:
    """Return 1 at the ``keep`` rows that stay, 0 elsewhere, fp32 ``[B, N]``."""
    group, keep = taps.group, taps.keep // taps.group
    number = group_of(taps)
    count = (taps.candidates.long().sum(1, keepdim=True) // group).clamp_min(1)
    return ((number + 1) * keep // count > number * keep // count).float()


METHOD = Method(
    name="stride",
    paper="control",
    licence="no other code",
    cost="O(N)",
    roles=frozenset({"vision", "decoder", "resampler"}),
    score=score,
    schedule=before_decoder,
    notes="evenly spaced tokens",
)
