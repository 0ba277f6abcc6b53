"""VisionDrop: what visual tokens look at, in the tower and three times in the decoder.

Paper: Xu et al., "Rethinking Visual Token Reduction in LVLMs Under Cross-Modal Misalignment"
(VisionDrop), AAAI 2026, arXiv:2506.22283; its body was not at hand, the released code was.  Four
stages, each by the rule of ``contextual.py`` (dominant rows, and evenly spread ones that the rest
is folded into):

    tower's end             attention of the class token, metric mean_h k, both of the last layer
    entering 8, 16, 24      mean over visual queries i of mean_h A[i, j], after the softmax over the
    of 32                   whole sequence; metric mean_h k with positions; of the layer behind the
                            cut, whose queries and keys are made once more for it

Rows behind the stages, contextual ones among them: 48, 35, 26, 19 and 6, 5, 4, 3, which is the one
setting in the code (32 in the mean); other budgets scale it.  A tower without class token reads the
attention that rows receive from each other.  Where the tower's rows cannot leave one by one, the
stage there is left out, and the note of the plan says so.

Where we differ: the code passes the class token on as one dominant row, puts contextual rows behind
the dominant ones and renumbers; here the class token stays behind, rows stand where they stood, and
positions are kept.
"""

from __future__ import annotations

from torch import Tensor

from tokopt.passes.methods.contextual import folded, tiers
from tokopt.passes.methods.method import (
    LAST_ROW,
    STACKS,
    LayerTap,
    Method,
    Placement,
    Setting,
    Taps,
)
from tokopt.passes.methods.received import received
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import staged, tower_end

ENTERING, LAYERS = (8, 16, 24), 32
TOTALS, CONTEXTUAL = (48, 35, 26, 19), (6, 5, 4, 3)


def score(taps: Taps) -> Tensor:
    """Return the attention of each row, 2 more at dominant rows, 1 more at targets, ``[B, N]``."""
    return tiers(taps, _attention(taps), _contextual(taps))


def combine(taps: Taps, stay: Tensor) -> Tensor:
    """Return the rows that stay, the dropped ones folded into the targets among them."""
    metric = _layer(taps).key.float().mean(1)
    return folded(taps, stay, _attention(taps), metric, _contextual(taps))


def _layer(taps: Taps) -> LayerTap:
    before = taps.want_layers("visiondrop")[-1]
    return taps.ahead if taps.relay == LAST_ROW and taps.ahead is not None else before


def _attention(taps: Taps) -> Tensor:
    if taps.relay is None or taps.relay == LAST_ROW:
        return received(_layer(taps), taps.candidates, taps.count, everyone=False)
    return relay_attention(_layer(taps), taps.relay)


def _contextual(taps: Taps) -> int:
    """Return how many rows take others in, by the published stage that is nearest in depth."""
    stage = 0
    if taps.relay == LAST_ROW:
        depth = (taps.layers[-1].depth + 1) * LAYERS / taps.layer_count
        stage = 1 + min(range(3), key=lambda at: abs(ENTERING[at] - depth))
    return round(CONTEXTUAL[stage] * taps.keep / TOTALS[stage])


def tower_rows(setting: Setting) -> int:
    """Return how many rows come into the decoder whose last stage leaves ``setting.keep``."""
    return min(setting.count, round(setting.keep * TOTALS[0] / TOTALS[-1]))


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """The stage at a tower's end; in a decoder the three others."""
    if setting.role != "decoder":
        return tower_end(setting)
    most = setting.layers - 1
    depths = (max(1, min(round(k * setting.layers / LAYERS), most)) for k in ENTERING)
    rows = (round(setting.keep * total / TOTALS[-1]) for total in TOTALS[1:])
    return staged(setting, depths, rows)


METHOD = Method(
    name="visiondrop",
    paper="arXiv:2506.22283",
    roles=frozenset({"vision", "decoder"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"layers"}),
    wishes=frozenset({"ahead"}),
    notes="attention among visual tokens, at the tower's end and three times in the decoder",
    options={STACKS: "both"},
    licence="Apache-2.0",
    cost="O(N²)",
    tower_rows=tower_rows,
    combine=combine,
)
