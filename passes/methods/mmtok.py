"""MMTok: the tokens that together cover the question and the image (facility location).

Paper: Dong et al., "MMTok: Multimodal Coverage Maximization for Efficient Inference of VLMs", 2025,
arXiv:2508.18264.  Over tokens j, question words i, all of length 1:

    P_ij = softmax_j(t_i · v_j / τ_t) / m       m words           τ_t = 0.02
    Q_ij = softmax_j(v'_i · v'_j / τ_v) / n     n tokens          τ_v = 0.2
    F(S) = Σ_i max_{j in S} P_ij + α Σ_i max_{j in S} Q_ij         α = 0.5

Greedy: the token of largest Σ_i max(0, C_ij - best_i) next, C = [P; αQ], best ← max(best, C_j).
The published code has τ_t = 0.01 in its path for Qwen and in the selector's own default.

C has a row for every row of the sequence and a column for every visual token: a step weighs all of
them against each token.  To make it anew in each of K steps, block by block, would hold less and
cost C times as many operations, C being the features of a row.

Here: v' are features before the projector in the paper, and v as well (the stream at the decoder's
entry) here; the code leaves stop words out and prunes each crop on its own, here the question is
all text behind the image and all tokens are chosen among.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.methods.fold import first_rows, rows_at
from tokopt.passes.methods.greedy import greedy, unit_rows
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.question import question_rows
from tokopt.passes.methods.rows import LOWEST
from tokopt.passes.methods.schedules import before_decoder

DEFAULTS: dict[str, int | float | str] = {
    "text_temperature": 0.02,
    "vision_temperature": 0.2,
    "alpha": 0.5,
}


def score(taps: Taps) -> Tensor:
    """Return the order of choice ``[B, N]``."""
    tokens = first_rows(taps.candidates, taps.count)
    covered = _coverage(taps, tokens)
    return greedy(taps, _gain, _update, (torch.zeros_like(covered[..., 0]),), (covered, tokens))


def _gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    gains = (given[0] - state[0].unsqueeze(-1)).clamp_min(0.0).sum(1)
    return torch.zeros_like(state[0]).scatter(1, given[1], gains)


def _update(state: Sequence[Tensor], given: Sequence[Tensor], chosen: Tensor) -> Sequence[Tensor]:
    """State: how well each row is covered, ``[B, N]``."""
    column = (given[1] == chosen).float().unsqueeze(2)  # one 1: the product is the column exactly
    return (torch.maximum(state[0], torch.bmm(given[0], column).squeeze(2)),)


def _coverage(taps: Taps, tokens: Tensor) -> Tensor:
    """Return C ``[B, N, n]``: how well row i is covered by visual token j, weights included."""
    rows, visual, asked = unit_rows(taps), taps.candidates, question_rows(taps, "mmtok")
    heat, cold = _option(taps, "text_temperature"), _option(taps, "vision_temperature")
    temperature = torch.where(visual, cold, heat).unsqueeze(-1)
    logits = torch.matmul(rows, rows_at(rows, tokens).transpose(1, 2)) / temperature
    real = visual.gather(1, tokens).unsqueeze(1)
    share = torch.softmax(logits.masked_fill(~real, LOWEST), -1)
    words = asked / asked.sum(1, keepdim=True).clamp_min(1)
    image = visual / visual.sum(1, keepdim=True).clamp_min(1)
    return share * (words + _option(taps, "alpha") * image).unsqueeze(-1)


def _option(taps: Taps, name: str) -> float:
    value = taps.options.get(name, DEFAULTS[name])
    if isinstance(value, str) or value < 0 or (value == 0 and name != "alpha"):
        raise InputError(f"mmtok: {name} = {value!r}", expected="a number above 0")
    return float(value)


METHOD = Method(
    name="mmtok",
    paper="arXiv:2508.18264",
    licence="Apache-2.0",
    cost="O(N²·K)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=before_decoder,
    needs=frozenset({"text"}),
    notes="greedy coverage of the question and of the image",
    square="a gain sums over all rows what a token adds to each; made anew in each of K steps the "
    "products would be O(N²·C·K) operations, not O(N²·K)",
    options=DEFAULTS,
    tunes={
        "text_temperature": (0.01, 0.04),
        "vision_temperature": (0.1, 0.4),
        "alpha": (0.25, 1.0, 2.0),
    },
)
