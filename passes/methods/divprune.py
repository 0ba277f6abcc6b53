"""DivPrune: the tokens that lie farthest from one another, by farthest-first traversal.

Paper: Alvar et al., "DivPrune: Diversity-based Visual Token Pruning for Large Multimodal Models",
CVPR 2025, arXiv:2503.02175, algorithm 1 (max-min diversity), d(i, j) = 1 - cos(x_i, x_j).

    first   argmax_i min_{j≠i} d(i, j)          the token whose nearest other is farthest
    next    argmax_i min_{j chosen} d(i, j)     until K are chosen

x are the projected tokens, so the stage enters the decoder's layer 0 (or ends a tower).  Paper and
code agree.  Equals go to the lower row.  The first step needs every pair once: it is a loop over
blocks of rows.  Where rows leave in groups, a group is its mean.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.greedy import greedy, loop, products, unit_rows
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import group_of
from tokopt.passes.methods.schedules import before_decoder

BLOCK = 64
BELOW = -2.0
"""Below every cosine."""


def score(taps: Taps) -> Tensor:
    """Return the order of choice ``[B, N]``."""
    rows = unit_rows(taps)
    nearest = _nearest_other(taps, rows)
    return greedy(taps, _gain, _update, (nearest, torch.full_like(nearest, BELOW)), (rows,))


def _gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    return -state[0]


def _update(state: Sequence[Tensor], given: Sequence[Tensor], chosen: Tensor) -> Sequence[Tensor]:
    """State: what is shown (the nearest other at first), the nearest chosen; both as cosines."""
    nearest = torch.maximum(state[1], products(given[0], rows_at(given[0], chosen)))
    return nearest, nearest.clone()


def _nearest_other(taps: Taps, rows: Tensor) -> Tensor:
    """Return each row's highest cosine with a candidate of another group, ``[B, N]``."""
    unit = torch.where(taps.candidates, group_of(taps), -1)

    def step(near: Tensor, places: Tensor, rows: Tensor, unit: Tensor) -> list[Tensor]:
        alike = torch.bmm(rows.index_select(1, places), rows.transpose(1, 2))
        units = unit.index_select(1, places).unsqueeze(2)
        other = (units != unit.unsqueeze(1)) & (units >= 0)
        return [torch.maximum(near, alike.masked_fill(~other, BELOW).amax(1))]

    count = rows.shape[1] // BLOCK + 2  # blocks enough, and never 1; the last row comes often
    places = torch.arange(count * BLOCK, device=rows.device).clamp_max(rows.shape[1] - 1)
    near = torch.full_like(rows[..., 0], BELOW)
    return loop(step, [near], places.unflatten(0, (count, BLOCK)), [rows, unit])[0]


METHOD = Method(
    name="divprune",
    paper="arXiv:2503.02175",
    licence="CC BY-NC 4.0: non-commercial",
    cost="O(N²)",
    roles=frozenset({"vision", "decoder"}),
    score=score,
    schedule=before_decoder,
    notes="max-min diversity: each next token is the one least like those chosen",
)
