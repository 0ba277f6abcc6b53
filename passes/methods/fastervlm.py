"""FasterVLM: keep the patches that the class token looks at in the tower's last layer.

Paper: Zhang et al., "[CLS] Attention is All You Need for Training-Free Visual Token Pruning: Make
VLM Inference Faster", arXiv:2412.01818.  It is the compressor of "When Language Overrules".

    score_j = mean_h A[CLS, j]          after the softmax, the layer whose output is the feature

One stage at the end of the tower, top-k in original order.  Paper and code agree.  Published on
layer 22 of LLaVA-1.5 (from 0), the last that is computed; here the last before the site.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import tower_end


def score(taps: Taps) -> Tensor:
    """Return the class token's attention in the layer before the site, ``[B, N]``."""
    relay = taps.want_relay("fastervlm", "use flowcut or fopru, which can do without")
    return relay_attention(taps.want_layers("fastervlm")[-1], relay)


METHOD = Method(
    name="fastervlm",
    paper="arXiv:2412.01818",
    licence="Apache-2.0",
    cost="O(N)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers", "relay"}),
    notes="class-token attention in the tower's last layer",
)
