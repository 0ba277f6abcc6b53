"""PAINT: the last row looks harder at the visual tokens that the tower finds informative.

Paper: Arif et al., "Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large
Vision-Language Model", arXiv:2501.12206 (v1).  With c the class token's attention, summed over
heads, in the first and in the last layer of the tower that feeds the decoder:

    summary tokens   c_last above Q3 + 1.5 (Q3 - Q1) of the tokens'
    local tokens     the quarter with the largest c_first that are no summary tokens
    z_j <- z_j + alpha |z_j| at local, z_j + beta |z_j| at summary tokens

z are the logits of the last row of the prompt, in all heads.  Layers 2 and up.  The last layer of
an exported tower is the one whose output is used (the penultimate of CLIP in LLaVA), as published.

Where we differ: the paper's spatial tokens are left out (in the code they are arbitrary: they rank
a sum that is always 1).  Tokens are those still there.  Decode is a program of its own and is left
as it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods.method import LayerTap, TowerTap
from tokopt.passes.methods.rows import at_row, dot, several, top_share
from tokopt.passes.rewrites.attended import Attended, Marking
from tokopt.passes.rewrites.rewrite import Rewrite

LOCAL = 4
"""Local tokens are one in so many."""


def mark(given: Marking) -> Tensor:
    """Return alpha at local and beta at summary tokens, 0 elsewhere, fp32 ``[B, N]``."""
    tower = given.tower
    if tower is None or tower.relay is None or tower.first is None:
        raise UnsupportedError(
            "paint reads the class token's attention in a tower, and this one has none",
            expected="a tower with a class token whose layers attend to all rows",
            hint="var does without",
        )
    last, first = (_looked_at(tower, layer) for layer in (tower.layer, tower.first))
    summary = given.candidates & (last > _bound(last, given.candidates))
    local = top_share(first, given.candidates, LOCAL) & ~summary
    alpha, beta = (float(given.options[name]) for name in ("alpha", "beta"))
    return alpha * local.float() + beta * summary.float()


def attend(taps: Attended) -> Tensor:
    """Return the last row's attention with raised logits, ``[B, H, 1, N]``."""
    assert taps.marks is not None
    before = several(taps.layer, taps.at)
    logits = dot(at_row(taps.layer.query, taps.at), taps.layer.key) * taps.layer.scale
    raised = (taps.marks.unsqueeze(1) * logits.abs()).unsqueeze(2)
    return torch.softmax(before.log() + raised, dim=-1)


def _looked_at(tower: TowerTap, layer: LayerTap) -> Tensor:
    assert tower.relay is not None
    return tower.arrive(layer.row(tower.relay).sum(1), 0.0)


def _bound(values: Tensor, among: Tensor) -> Tensor:
    """Return Q3 + 1.5 (Q3 - Q1) of the values among some, ``[B, 1]``; quartiles lie on lines."""
    ordered = torch.sort(values.masked_fill(~among, float("inf")), dim=1)[0]
    last = (among.sum(1, keepdim=True) - 1).clamp_min(0)

    def quartile(part: float) -> Tensor:
        place = last * part
        low = place.floor().long()
        at, after = ordered.gather(1, low), ordered.gather(1, torch.minimum(low + 1, last))
        return at + (place - low) * (after - at)

    upper = quartile(0.75)
    return upper + 1.5 * (upper - quartile(0.25))


REWRITE = Rewrite(
    name="paint",
    paper="arXiv:2501.12206",
    roles=frozenset({"decoder"}),
    rows="last",
    attend=attend,
    first=2,
    options={"alpha": 0.7, "beta": 0.4},
    neutral={"alpha": 0.0, "beta": 0.0},
    notes="the last row looks harder at what the tower's class token looks at",
    mark=mark,
    needs=frozenset({"layers", "tower"}),
    licence="Apache-2.0",
    cost="O(N)",
)
