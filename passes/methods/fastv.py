"""FastV: early in the decoder, drop the visual tokens that the last prompt token ignores.

Paper: Chen et al., "An Image is Worth 1/2 Tokens After Layer 2", ECCV 2024, arXiv:2403.06764.

    score_j = mean_h A^{K-1}[last, j]           post-softmax over the whole sequence

Cut between layers K-1 and K, K = 2 of 32; text stays, kept tokens keep position ids and order.

Here: K = round(2 · L/32), at least 1.  The original code prunes again at every decode step because
it runs without a cache; like its own cached variant, we select once, at prefill.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.method import LAST_ROW, Method, Taps
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import entering

ENTERING, LAYERS = 2, 32


def score(taps: Taps) -> Tensor:
    """Return the last token's attention in the layer before the site, ``[B, N]``."""
    return relay_attention(taps.want_layers("fastv")[-1], LAST_ROW)


METHOD = Method(
    name="fastv",
    paper="arXiv:2403.06764",
    licence="no licence file",
    cost="O(N)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=entering(ENTERING, LAYERS),
    needs=frozenset({"layers", "relay"}),
    notes="attention of the last prompt token in the second decoder layer",
)
