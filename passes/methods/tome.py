"""ToMe: in every layer, merge the r pairs of tokens that are most alike.

Paper: Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv:2210.09461.  With k the
head mean of the keys and s_j how many patches token j stands for:

    A, B      tokens at even and at odd places, each a of A with its most similar b in B by cosine
    merge     the r pairs of largest cosine:  x_b <- (s_b x_b + sum s_a x_a) / (s_b + sum s_a)
    attend    softmax(q k' / sqrt(d) + log s) v: a merged token counts as often as it is made of

r is the same in every layer.

Where we differ: the paper merges between attention and MLP of a block, by that block's keys; here
at the entry of the next layer (behind the MLP), by the keys of the layer before: that is where rows
may leave.  A token that took others in stands where it stood (the code puts A before B).  Where
more than half must go at once B is every s-th token instead of every second.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.fold import (
    first_rows,
    has_any,
    normalised,
    rows_at,
    segmented_mean,
    stays,
)
from tokopt.passes.methods.method import Method, Placement, Setting, Taps
from tokopt.passes.methods.rows import rank_of

STAYS = 2.0
"""Score of a row of B: above every row of A, whose scores are -cosine."""


def score(taps: Taps) -> Tensor:
    """Return minus the cosine to the most similar row of B, ``[B, N]``; rows of B stay."""
    among = _targets(taps)
    best = _alikeness(taps, among).amax(-1)
    return torch.where(among, STAYS, -best)


def combine(taps: Taps, stay: Tensor) -> Tensor:
    """Return the rows that stay, each dropped one merged into the row of B most like it."""
    sizes, goes = taps.want_sizes(), taps.candidates & ~stays(taps, stay)
    among, target = _assigned(taps)
    weight = torch.where(goes | among, sizes, 0.0)
    mean = segmented_mean(taps.hidden, target, weight, _count(taps))
    taken = has_any(target, _count(taps), goes.float())
    number = rank_of(among).gather(1, stay).clamp_min(0)
    made = among.gather(1, stay).unsqueeze(-1) & (rows_at(taken.float(), number) > 0)
    rows = rows_at(taps.hidden, stay)
    return torch.where(made, rows_at(mean, number).to(rows.dtype), rows)


def weigh(taps: Taps, stay: Tensor) -> Tensor:
    """Return how many patches each row that stays is made of, fp32 ``[B, K]``."""
    sizes, goes = taps.want_sizes(), taps.candidates & ~stays(taps, stay)
    among, target = _assigned(taps)
    none = sizes.new_zeros(sizes.shape[0], _count(taps))
    came = none.scatter_add(1, target, torch.where(goes & ~among, sizes, 0.0))
    number = rank_of(among).gather(1, stay).clamp_min(0)
    own = sizes.gather(1, stay)
    return torch.where(among.gather(1, stay), own + came.gather(1, number), own)


def _step(taps: Taps) -> int:
    return max(2, -(-taps.count // taps.keep))


def _count(taps: Taps) -> int:
    """Return how many rows B has at most."""
    return -(-taps.count // _step(taps))


def _targets(taps: Taps) -> Tensor:
    """Return B, bool ``[B, N]``: every second place, or every s-th where more than half go."""
    place, step = torch.arange(taps.candidates.shape[1], device=taps.candidates.device), _step(taps)
    if step > 2:
        return taps.candidates & (rank_of(taps.candidates) % step == step - 1)
    return taps.candidates & (place % 2 == 1)


def _alikeness(taps: Taps, among: Tensor) -> Tensor:
    """Return the cosine of every row with every row of B, ``[B, N, C]``; -2 where there is none."""
    metric = taps.want_layers("tome")[-1].key.float().mean(1)
    at = first_rows(among, _count(taps))
    alike = normalised(metric) @ normalised(rows_at(metric, at)).transpose(-2, -1)
    return alike.masked_fill(~among.gather(1, at).unsqueeze(1), -2.0)


def _assigned(taps: Taps) -> tuple[Tensor, Tensor]:
    """Return B, and the number in B of each row's target, int64 ``[B, N]``; B's is its own."""
    among = _targets(taps)
    target = torch.argmax(_alikeness(taps, among), dim=-1)
    return among, torch.where(among, rank_of(among), target)


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """Behind every layer, the same number of rows less."""
    count, gone, layers = setting.count, setting.count - setting.keep, setting.layers
    depths = range(1, layers + 1)
    return tuple(Placement(d, count - round(gone * d / layers)) for d in depths)


METHOD = Method(
    name="tome",
    paper="arXiv:2210.09461",
    roles=frozenset({"vision"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"layers"}),
    notes="merges the most similar pairs in every layer; attention counts what rows are made of",
    licence="CC BY-NC 4.0: non-commercial",
    cost="O(N²)",
    combine=combine,
    weigh=weigh,
)
