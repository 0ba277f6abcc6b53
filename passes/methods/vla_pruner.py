"""VLA-Pruner: what matters to the instruction or mattered to the last actions, far from each other.

Paper: Liu et al., "VLA-Pruner: Temporal-Aware Dual-Level Visual Token Pruning for Efficient
Vision-Language-Action Inference", 2025, arXiv:2511.16449 (code at fa5bfed).
Entering layer K = 3 of 32, with A the head mean of layer K-1's attention and M tokens to keep:

    S_vl    = mean_i A[i, :]                       over all rows i of the prompt
    S_act   = Σ_{i=1..w} γ^i S^{t-i}               w = 3, γ = 0.8: the last w steps, newest first
    C       = top M of S_vl  ∪  top M of S_act
    chosen  first the row of C whose nearest other in C is farthest, then the row farthest from
            those chosen, by cosine of the rows that entered the decoder, until M are chosen

Paper against code: the code pairs γ^(w-1) with the newest step and γ^0 with the oldest; the paper's
order is kept here.

Where we differ: S^t is in the paper the attention of the action tokens (the last prompt row is the
first of them) in the latter half of the layers, read while decoding.  At the site only the layers
in front of it are there: S^t is the last prompt row's attention in layer K-1.  It is kept from call
to call by visual row; whoever decodes with attention gives its own in ``history`` ``[B, w, rows]``,
oldest first.  Rows that an earlier stage dropped count as 0.  The published first w steps run
unpruned; here, counts being constant, S_act is S_vl while there is no history.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods import divprune
from tokopt.passes.methods.method import ITEMS, LAST_ROW, ROWS, Method, Taps
from tokopt.passes.methods.received import received
from tokopt.passes.methods.rows import rank_of, relay_attention, top_rows
from tokopt.passes.methods.schedules import entering

ENTERING, LAYERS = 3, 32
STEPS, DECAY = 3, 0.8


def score(taps: Taps) -> Tensor:
    """Return the order of choice in C ``[B, N]``; -1 at other rows."""
    if taps.group != 1:
        raise UnsupportedError("vla_pruner chooses single rows, and rows leave in groups here")
    layer = taps.want_layers("vla_pruner")[-1]
    seen = received(layer, taps.candidates, taps.count, everyone=True)
    if "history" in taps.state:
        weights = DECAY ** torch.arange(STEPS, 0, -1, device=seen.device)
        smooth = (taps.state["history"] * weights.view(1, -1, 1)).sum(1)
        acted = smooth.gather(1, _numbers(taps))
        known = smooth.amax(1, keepdim=True) > 0
        wanted = top_rows(torch.where(known, acted, seen), taps.candidates, taps.keep)
    else:
        wanted = torch.zeros_like(taps.candidates)
    union = wanted | top_rows(seen, taps.candidates, taps.keep)
    rows = taps.hidden if taps.entry is None else taps.entry
    return divprune.score(replace(taps, candidates=union, hidden=rows))


def remember(taps: Taps, stay: Tensor) -> Mapping[str, Tensor]:
    """Return the history with this step's attention behind it."""
    history = taps.state["history"]
    own = relay_attention(taps.layers[-1], LAST_ROW).masked_fill(~taps.candidates, 0.0)
    newest = torch.zeros_like(history[:, 0]).scatter_add(1, _numbers(taps), own)
    return {"history": torch.cat([history[:, 1:], newest.unsqueeze(1)], 1)}


def _numbers(taps: Taps) -> Tensor:
    """Return each row's number among the visual rows of the original, 0 at other rows."""
    numbers = rank_of(taps.candidates) if taps.numbers is None else taps.numbers
    return numbers.masked_fill(~taps.candidates, 0)


METHOD = Method(
    name="vla_pruner",
    paper="arXiv:2511.16449",
    licence="MIT",
    cost="O(N²)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=entering(ENTERING, LAYERS),
    needs=frozenset({"layers", "relay", "entry"}),
    notes="what the prompt attends to or attended to in the last steps, spread by max-min distance",
    state={"history": (ITEMS, STEPS, ROWS)},
    remember=remember,
)
