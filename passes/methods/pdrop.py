"""PyramidDrop: three stages in the decoder, each keeps what the last prompt token looks at.

Paper: Xing et al., "PyramidDrop: Accelerating Your Large Vision-Language Models via Pyramid Visual
Redundancy Reduction", CVPR 2025, arXiv:2410.17247.  Entering layers 8, 16 and 24 of 32:

    score_j = mean_h A[last, j]         after the softmax over the whole sequence
    kept    = N·λ, N·λ², N·λ³           λ = 1/2 as published: 288, 144, 72 of 576

Here λ = (keep / N)^(1/3), which is 1/2 at the published 72; counts are rounded down to whole
groups, never below ``keep``.  Layer k of 32 becomes round(k · L/32), at least 1 and at most L - 1;
of two on one site the later count holds.

A is that of the layer *behind* the cut, whose queries and keys are made once more, for the score
alone, as in the released code.  Where no layer over all rows is behind the site, or another stream
reads the stack, A is that of the layer before it.

Where we differ: the code renumbers positions; here they are kept.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.method import LAST_ROW, Method, Placement, Setting, Taps
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import staged

ENTERING, LAYERS = (8, 16, 24), 32


def score(taps: Taps) -> Tensor:
    """Return the last token's attention in the layer behind the site, ``[B, N]``."""
    layer = taps.want_layers("pdrop")[-1] if taps.ahead is None else taps.ahead
    return relay_attention(layer, LAST_ROW)


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """Three stages, each keeping the same share of what the one before it left."""
    share = (setting.keep / setting.count) ** (1 / len(ENTERING))
    most = setting.layers - 1
    depths = (max(1, min(round(k * setting.layers / LAYERS), most)) for k in ENTERING)
    rows = (int(setting.count * share**stage + 1e-6) for stage in (1, 2, 3))
    return staged(setting, depths, (left // setting.group * setting.group for left in rows))


METHOD = Method(
    name="pdrop",
    paper="arXiv:2410.17247",
    licence="MIT",
    cost="O(N)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"layers", "relay"}),
    wishes=frozenset({"ahead"}),
    notes="attention of the last prompt token, in three stages of equal share",
)
