"""VisionZip: keep what the class token looks at, fold the rest into evenly spread tokens.

Paper: Yang et al., "VisionZip: Longer is Better but Not Necessary in Vision Language Models",
CVPR 2025, arXiv:2412.04467.  One stage at the end of the tower, T = D + C tokens by the rule of
``contextual.py``:

    attention    a_j = mean_h A[CLS, j] of the last layer
    metric       mean_h k_j of the last layer, without scale

C = round(10/64 · T): the published splits (54 + 10 at 64, 162 + 30 at 192).

Where we differ: the code spends one dominant token on CLS itself and puts the contextual tokens
behind the dominant ones, renumbered.  Here the class token stays behind as in the original model,
and every contextual token stands where its target stood.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.contextual import folded, tiers
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import tower_end

CONTEXTUAL, OF = 10, 64


def score(taps: Taps) -> Tensor:
    """Return the class token's attention ``[B, N]``, 2 more at dominant rows, 1 more at targets."""
    return tiers(taps, _attention(taps), _contextual(taps))


def combine(taps: Taps, stay: Tensor) -> Tensor:
    """Return the rows that stay, the dropped ones folded into the targets among them."""
    metric = taps.want_layers("visionzip")[-1].key.float().mean(1)
    return folded(taps, stay, _attention(taps), metric, _contextual(taps))


def _contextual(taps: Taps) -> int:
    return round(CONTEXTUAL * taps.keep / OF)


def _attention(taps: Taps) -> Tensor:
    relay = taps.want_relay("visionzip", "use divprune or dart, which can do without")
    return relay_attention(taps.want_layers("visionzip")[-1], relay)


METHOD = Method(
    name="visionzip",
    paper="arXiv:2412.04467",
    licence="Apache-2.0",
    cost="O(N·K)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers", "relay"}),
    notes="class-token attention; the rest is folded into evenly spread tokens",
    combine=combine,
)
