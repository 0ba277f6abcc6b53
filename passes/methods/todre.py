"""ToDRE: the tokens least like all those chosen before them (max-sum diversity).

Paper: Li et al., "ToDRE: Effective Visual Token Pruning via Token Diversity and Task Relevance",
arXiv:2505.18757, section 4.1 (no code is published).

    first   argmax of the class token's attention in the tower's last layer
    next    argmin_i Σ_{c chosen} cos(x_i, x_c)     = argmin x̂_i · u,  u = Σ x̂_c

The first version of the paper calls this k-center; it is a sum, as the second says.  In a decoder
the class token is that of the tower in front of it; where a picture is shown whole and in tiles,
the first is chosen among the rows of the whole, as in the paper.  Where there is no class token, or
another stage shortens the tower, any pivot may be taken: ours is the row least like all candidates
together, the rule's own choice for u over them all.

The paper's second stage, removing all visual tokens after layer 7/8 L where the attention between
them and text is weak, is not here: a stage keeps at least one token.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.greedy import greedy, group_means, products, unit_rows
from tokopt.passes.methods.method import CLASS_ROW, Method, Taps
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import before_decoder


def score(taps: Taps) -> Tensor:
    """Return the order of choice ``[B, N]``."""
    rows = unit_rows(taps)
    whole = rows.masked_fill(~taps.candidates.unsqueeze(-1), 0.0).sum(1, keepdim=True)
    favourite = _favourite(taps)
    if favourite is None:
        pivot = -products(rows, whole)
    else:
        pivot = group_means(taps, favourite.unsqueeze(-1)).squeeze(-1)
    return greedy(taps, _gain, _update, (pivot, whole * 0.0), (rows,))


def _favourite(taps: Taps) -> Tensor | None:
    """Return the class token's attention ``[B, N]``, None where there is no class token."""
    if taps.relay == CLASS_ROW and taps.layers:
        return relay_attention(taps.layers[-1], CLASS_ROW)
    if taps.tower is None or taps.tower.relay is None:
        return None
    seen = taps.tower.arrive(relay_attention(taps.tower.layer, taps.tower.relay), 0.0)
    places = taps.places
    if places is None or places.mosaic is None:
        return seen
    return seen.masked_fill(places.tile != places.mosaic.whole, -1.0)


def _gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    return state[0]


def _update(state: Sequence[Tensor], given: Sequence[Tensor], chosen: Tensor) -> Sequence[Tensor]:
    """State: what is shown (the pivot's score at first), u ``[B, 1, C]``."""
    total = state[1] + rows_at(given[0], chosen)
    return -products(given[0], total), total


METHOD = Method(
    name="todre",
    paper="arXiv:2505.18757",
    licence="no code published",
    cost="O(N·K)",
    roles=frozenset({"vision", "decoder"}),
    score=score,
    schedule=before_decoder,
    wishes=frozenset({"tower", "places"}),
    notes="max-sum diversity from the class token's favourite; the late drop is not included",
)
