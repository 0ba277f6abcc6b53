"""CDPruner: tokens that differ from one another and answer to the question (a conditional DPP).

Paper: Zhang et al., "Beyond Attention or Similarity: Maximizing Conditional Diversity for Token
Pruning in MLLMs", NeurIPS 2025, arXiv:2506.10967, section 3.

    r_i = mean_{j in question} cos(x_i, t_j)                   scaled to 0 .. 1 over the tokens
    L_ij = r_i · cos(x_i, x_j) · r_j                           greedy MAP: largest det(L_S), |S| = K

The greedy step (Chen et al., NeurIPS 2018) chooses argmax d, then, j the chosen row:

    e = (L_j - Σ_{s chosen} c_s[j] · c_s) / √d_j,  c ← c + e,  d ← d - e²,  d = diag L at first

One row of L a step is computed; what is carried is K x N.

Paper and code: the code takes the *negative* of the cosine, since CLIP's own embeddings of image
and text run against each other there; ``compat = "code"`` does.  Both add 1e-6 to what is scaled.
Here: CLIP's text tower is no part of such a program, so x and t are the rows of the merged sequence
at the decoder's entry, as the paper does for models without a text encoder.  The scale is taken
over each item, the code's over the batch.  A d that has fallen to nothing (more tokens than
dimensions) counts as 0, so that errors do not choose: those rows come in their order.  The code's
turns to NaN there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokopt.passes.methods import settings
from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.greedy import greedy, products, unit_rows
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.question import question_rows
from tokopt.passes.methods.schedules import before_decoder

EPSILON = 1e-6
NOTHING = 1e-4
"""Of a row's first d, at most 1: what is left below this is rounding of the sums before."""


def score(taps: Taps) -> Tensor:
    """Return the order of choice ``[B, N]``."""
    rows = unit_rows(taps)
    kernel = rows * _relevance(taps, rows).unsqueeze(-1)  # L = kernel @ kernel^T
    left = kernel.square().sum(-1)
    steps = taps.keep // taps.group
    basis = left.new_zeros(left.shape[0], steps, left.shape[1])
    return greedy(taps, _gain, _update, (left, basis), (kernel,))


def _gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    return torch.where(state[0] > NOTHING, state[0], 0.0)


def _update(state: Sequence[Tensor], given: Sequence[Tensor], chosen: Tensor) -> Sequence[Tensor]:
    left, basis = state
    mine = basis.gather(2, chosen.unsqueeze(1).expand(-1, basis.shape[1], 1))
    row = products(given[0], rows_at(given[0], chosen)) - (mine * basis).sum(1)
    height = left.gather(1, chosen)
    new = torch.where(height > NOTHING, row / height.clamp_min(NOTHING).sqrt(), 0.0)
    return left - new.square(), torch.cat([basis[:, 1:], new.unsqueeze(1)], 1)


def _relevance(taps: Taps, rows: Tensor) -> Tensor:
    """Return r scaled to 0 .. 1 over the candidates, ``[B, N]``; without text all are 1."""
    asked = question_rows(taps, "cdpruner")
    text = rows.masked_fill(~asked.unsqueeze(-1), 0.0).sum(1, keepdim=True)
    mean = products(rows, text) / asked.sum(1, keepdim=True).clamp_min(1)
    if settings.choice(taps, "cdpruner", "compat", "paper", "code") == "code":
        mean = -mean
    low = mean.masked_fill(~taps.candidates, float("inf")).amin(1, keepdim=True)
    high = mean.masked_fill(~taps.candidates, float("-inf")).amax(1, keepdim=True)
    span = high - low
    scaled = (mean - low + EPSILON) / span.clamp_min(EPSILON)
    return torch.where(span > EPSILON, scaled, 1.0)


METHOD = Method(
    name="cdpruner",
    paper="arXiv:2506.10967",
    licence="Apache-2.0",
    cost="O(N·K²)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=before_decoder,
    needs=frozenset({"text"}),
    notes="greedy MAP of a determinantal point process, weighted by relevance to the question",
    options={"compat": "paper"},
    tunes={"compat": ("code",)},
)
