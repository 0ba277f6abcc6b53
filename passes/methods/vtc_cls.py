"""VTC-CLS: keep the patches that the class token looked at in the last third of the tower.

Paper: Wang et al., "[CLS] Token Tells Everything Needed for Training-free Efficient MLLMs", 2024.

    score_j = Σ_{l=s}^{last} mean_h A^l[CLS, j]          A^l after the softmax, layers from 0

One stage at the end of the tower, top-k in original order.  Published: s = 16 where features come
from the output of layer 22 (LLaVA-1.5), so the last 7 of the 23 layers that are computed.

Here: s = round(16/23 · n) for n layers before the site, so the published tower gets s = 16, also
when a stage has to move earlier.  ``start`` sets s itself.  The relay is the row the graph reads as
class token; learned rows are never dropped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods import settings
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import tower_end

START, LAYERS = 16, 23


def score(taps: Taps) -> Tensor:
    """Return the summed class-token attention ``[B, N]``."""
    relay = taps.want_relay("vtc_cls", "use flowcut, which can do without")
    layers = taps.want_layers("vtc_cls")
    start = settings.layer(taps, "vtc_cls", "start", START, LAYERS)
    chosen = [layer for layer in layers if layer.depth >= start]
    return torch.stack([relay_attention(layer, relay) for layer in chosen]).sum(0)


METHOD = Method(
    name="vtc_cls",
    paper="arXiv:2412.05819",
    licence="Apache-2.0",
    cost="O(N)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers", "relay"}),
    notes="class-token attention summed over the last third of the tower",
    options={"start": "scaled"},
    tunes={"start": (0,)},
)
