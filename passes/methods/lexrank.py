"""LexRank: centrality of a token among all tokens, by similarity.

Paper: Erkan and Radev, "LexRank: Graph-based Lexical Centrality as Salience in Text
Summarization", JAIR 2004, arXiv:1109.2128, made for sentences.  With rows x̂ of length 1:

    S_ij = max(x̂_i · x̂_j, 0)            or, with ``threshold`` t, 1 where x̂_i · x̂_j ≥ t
    p = Pᵀ p,  P = S with rows scaled to sum 1

Paper against code: the paper damps (p = d/N + (1-d) Pᵀ p), the code that is in use (crabcamp) does
not; it is followed, because S is symmetric and p is then the degree over the sum of degrees: no
iteration.  The code ranks each connected component for itself; among visual tokens there is one.

High centrality means typical.  ``order="central"`` keeps the typical, as the paper; where what
stands out shall stay, ``order="distinct"`` keeps the others.  The x are the stream at the site.
One stage at the end of the tower: no placement for visual tokens was published.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.methods import settings
from tokopt.passes.methods.fold import first_rows, normalised, rows_at
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.rows import share
from tokopt.passes.methods.schedules import before_decoder

BLOCK = 64
"""Rows that are compared with all at once."""


def score(taps: Taps) -> Tensor:
    """Return p ``[B, N]``, below zero where the distinct shall stay."""
    order = settings.choice(taps, "lexrank", "order", "central", "distinct")
    p = share(_degree(taps), taps.candidates)
    return p if order == "central" else -p


def _degree(taps: Taps) -> Tensor:
    """Return the sum of each row's similarities to all candidates, fp32 ``[B, N]``."""
    threshold = taps.options.get("threshold", "none")
    if isinstance(threshold, str) and threshold != "none":
        raise InputError(f"lexrank: threshold = {threshold!r}", expected="'none' or a cosine")
    rows = normalised(taps.hidden)
    degree = torch.zeros_like(taps.candidates, dtype=torch.float32)
    for block in first_rows(taps.candidates, taps.count).split(BLOCK, 1):
        alike = rows_at(rows, block) @ rows.transpose(-2, -1)
        if isinstance(threshold, str):
            alike = alike.clamp_min(0.0)
        else:
            alike = (alike >= threshold).float()
        degree = degree + (alike * taps.candidates.gather(1, block).unsqueeze(-1)).sum(1)
    return degree


METHOD = Method(
    name="lexrank",
    paper="arXiv:1109.2128",
    licence="MIT",
    cost="O(N²)",
    roles=frozenset({"vision", "decoder"}),
    score=score,
    schedule=before_decoder,
    notes="similarity to all other tokens",
    options={"order": "central", "threshold": "none"},
    tunes={"order": ("distinct",), "threshold": (0.1, 0.3)},
)
