"""CATP: every image covers itself for its text; then examples and question choose for each other.

Paper: "CATP: Contextually Adaptive Token Pruning for Efficient and Enhanced Multimodal In-Context
Learning", AAAI 2026; no code published.  A prompt holds examples (image and text) and a question
(image and text).  Of S visual tokens K are to remain; each of two stages removes half.

    ŝ(a, b) = (1 + cos(a, b)) / 2
    1. in front of the decoder, of each image X with v̄ the mean of its text, greedily for |Y|:
           Σ_{x in X} max_{y in Y} ŝ(y, x) + λ₁ Σ_{y in Y} ŝ(y, v̄)                    λ₁ = 0.7
    2. behind layer k = 6 of 32, with h the stream and A the head mean of the last row's attention:
           examples  max(0, A^k_c - A^(k-1)_c) + λ₂ cos(h_c, mean of the question's rows), λ₂ = 0.6
           question  cos(h_q, mean of what is left in front of the question's image)

Examples share one count over all their images, the question's image has its own, in proportion to
what they have: the total is K however many images there are.

Where we differ: the question's image is rated in the same layer as the examples (the paper: one
layer later), since how many rows a stage leaves must not depend on the prompt.  The paper does not
say how the cosine gets to 0 .. 1; ŝ is ours.  An image is a run of visual rows, its text what
follows it (``images.py``).  A prompt of one image has no example: the image is rated as one, by the
text of the question.

Stage 1 holds a square of the visual rows: a step weighs each against every other.  Text has no part
in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokopt.passes.methods import settings
from tokopt.passes.methods.fold import first_rows, normalised, rows_at
from tokopt.passes.methods.greedy import greedy, group_means, unit_rows
from tokopt.passes.methods.images import image_numbers, image_sizes, mean_of, means_by_image
from tokopt.passes.methods.method import LAST_ROW, Method, Placement, Setting, Taps
from tokopt.passes.methods.quota import by_quota, quotas
from tokopt.passes.methods.rows import relay_attention
from tokopt.passes.methods.schedules import staged

BEHIND, LAYERS = 6, 32
RELEVANCE, CONTEXT = 0.7, 0.6


def score(taps: Taps) -> Tensor:
    """Return the order of choice in the first stage, the share's best in the next, ``[B, N]``."""
    return _covering(taps) if taps.carried is None else _in_context(taps)


def _covering(taps: Taps) -> Tensor:
    weight = settings.number(taps, "catp", "relevance", RELEVANCE, 0.0, 100.0)
    rows, visual = unit_rows(taps), taps.candidates
    numbers = image_numbers(visual)
    text = means_by_image(taps.hidden, numbers, taps.want_text("catp"))
    near = (1 + (rows * normalised(text)).sum(-1)) / 2
    tokens = first_rows(visual, taps.count)
    shown = rows_at(rows, tokens)
    alike = (1 + torch.matmul(shown, shown.transpose(1, 2))) / 2
    image = torch.where(visual, numbers, -1)
    own = image.gather(1, tokens)
    same = (own.unsqueeze(2) == own.unsqueeze(1)) & (own >= 0).unsqueeze(1)
    covered = torch.where(same, alike, 0.0) / taps.group  # a group counts as one row
    share = quotas(image_sizes(numbers, visual), taps.keep // taps.group)
    left = share.gather(1, numbers.clamp_min(0))
    state = (torch.zeros_like(covered[..., 0]), left)
    return greedy(taps, _gain, _update, state, (covered, weight * near, image, tokens))


def _gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
    """Return the gain of each row; of an image that has its share, below all others, as ordered."""
    gains = (given[0] - state[0].unsqueeze(-1)).clamp_min(0.0).sum(1)
    new = given[1] + torch.zeros_like(given[1]).scatter(1, given[3], gains)
    return torch.where(state[1] > 0, new, -1 / (1 + new.clamp_min(0.0)))


def _update(state: Sequence[Tensor], given: Sequence[Tensor], chosen: Tensor) -> Sequence[Tensor]:
    """State: how well each visual row is covered, what is left of each row's image's share."""
    column = (given[3] == chosen).float().unsqueeze(2)  # one 1: the product is the column exactly
    best = torch.maximum(state[0], torch.bmm(given[0], column).squeeze(2))
    return best, state[1] - (given[2] == given[2].gather(1, chosen)).float()


def _in_context(taps: Taps) -> Tensor:
    visual, text = taps.candidates, taps.want_text("catp")
    numbers = image_numbers(visual)
    last = numbers.amax(1, keepdim=True)
    asked = (visual | text) & (numbers == last) & (text | (last > 0))
    asked = torch.where(asked.any(1, keepdim=True), asked, text)
    example = visual & ((numbers < last) | (last == 0))
    units = quotas(_counts(example, visual & ~example), taps.keep // taps.group)
    quota = units * taps.group
    first = by_quota(_shown(taps, _for_question(taps, asked)), torch.where(example, 0, -1), quota)
    context = (first >= 1) | (text & (numbers < last))
    found = 1 + _cosine(taps.hidden, mean_of(taps.hidden, context))
    values = torch.where(example, _for_question(taps, asked), found)
    crop = torch.where(visual, (~example).long(), -1)
    return by_quota(_shown(taps, values.clamp_min(0.0)), crop, quota)


def _for_question(taps: Taps, asked: Tensor) -> Tensor:
    """Return S_ctx + λ₂, which is not negative, ``[B, N]``."""
    weight = settings.number(taps, "catp", "context", CONTEXT, 0.0, 100.0)
    layers = taps.want_layers("catp")
    now = relay_attention(layers[-1], LAST_ROW)
    rise = now - relay_attention(layers[-2], LAST_ROW) if len(layers) > 1 else now
    near = 1 + _cosine(taps.hidden, mean_of(taps.hidden, asked))
    return rise.clamp_min(0.0) + weight * near.clamp_min(0.0)


def _cosine(rows: Tensor, row: Tensor) -> Tensor:
    return (normalised(rows) * normalised(row)).sum(-1)


def _counts(first: Tensor, second: Tensor) -> Tensor:
    return torch.stack([first.float().sum(1), second.float().sum(1)], dim=1)


def _shown(taps: Taps, values: Tensor) -> Tensor:
    """Return values of rows, where rows leave in groups the mean of their group."""
    return group_means(taps, values.unsqueeze(-1)).squeeze(-1)


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """Half of what goes goes in front of the decoder, the rest behind layer 6 of 32."""
    inner = min(setting.layers, max(2, round(BEHIND * setting.layers / LAYERS)))
    half = (setting.count + setting.keep) // 2 // setting.group * setting.group
    return staged(setting, (0, inner), (half, setting.keep))


METHOD = Method(
    name="catp",
    paper="AAAI 2026 (CATP)",
    licence="no code published",
    cost="O(N²·K)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"text", "relay"}),
    options={"relevance": RELEVANCE, "context": CONTEXT},
    tunes={"relevance": (0.35, 1.4), "context": (0.3, 1.2)},
    square="as mmtok, of visual rows within images",
    notes="images cover themselves for their text; examples and question then choose each other's",
)
