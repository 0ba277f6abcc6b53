"""TransPrune: the tokens that the decoder's blocks turn and stretch, and that the prompt looks at.

Paper: Li et al., "TransPrune: Token Transition Pruning for Efficient Large Vision-Language Model",
CVPR 2026, arXiv:2507.20630.  For each block F (attention, feed-forward) of a layer, with T_in what
it reads behind its norm and T_out what it adds to the stream:

    m = ‖T_out‖ / ‖T_in‖      d = cos(T_out, T_in)      TTV_F = m · softmax_j(1 - |d|)
    TTV   = Σ over both blocks and the layers so far; it goes on with the tokens that stay
    IGA_j = mean over heads and text rows t behind the image of A[t, j], of the layer behind the cut
    score = α · TTV / Σ TTV + (1 - α) · IGA / Σ IGA,  α = 1/2, sums over visual tokens

Three cuts, behind layers 7, 9 and 12 of 32 (from 1); the layers that count are the 7th and all
later ones.  Kept: 7/8, 5/8 and 1/8 of all, the released setting; other budgets lie on lines from
it to none and to all.  ``alpha`` sets α.

Paper against code: the softmax is over visual tokens and |d|; in the code over the whole sequence
and d: ``compat="code"``.  As the code does, IGA makes the queries and keys of the layer behind the
cut once more; where there is none to read it is the layer before it.

Where we differ: positions are kept (the code renumbers); a prompt without text behind the image
looks with all of its text.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods import settings
from tokopt.passes.methods.fold import first_rows
from tokopt.passes.methods.method import Method, Placement, Setting, Taps
from tokopt.passes.methods.question import question_rows
from tokopt.passes.methods.rows import LOWEST, TINY, several, share
from tokopt.passes.methods.schedules import between, scaled, staged

ENTERING, LAYERS = (7, 9, 12), 32
SHARES = ((0.0, 0.0, 0.0), (0.875, 0.625, 0.125), (1.0, 1.0, 1.0))
"""What stays behind the three stages, of all; between the lines, lines."""


def score(taps: Taps) -> Tensor:
    """Return transition and attention, each scaled to sum 1 over candidates, ``[B, N]``."""
    alpha = settings.number(taps, "transprune", "alpha", 0.5, 0.0, 1.0)
    turned = share(transition(taps), taps.candidates)
    return alpha * turned + (1 - alpha) * share(_attention(taps), taps.candidates)


def transition(taps: Taps) -> Tensor:
    """Return TTV ``[B, N]``: of the layer before the first stage, of all since then."""
    layers = taps.want_layers("transprune")
    code = settings.choice(taps, "transprune", "compat", "paper", "code") == "code"
    total = taps.passed
    for layer in layers if total is not None else layers[-1:]:
        for before, after in layer.blocks:
            step = _turn(before.float(), after.float(), taps.candidates, code)
            total = step if total is None else total + step
    assert total is not None
    return total


def _turn(before: Tensor, after: Tensor, candidates: Tensor, code: bool) -> Tensor:
    long, short = (x.square().sum(-1).sqrt().clamp_min(TINY) for x in (after, before))
    alike = (before * after).sum(-1) / short / long
    apart = 1 - alike if code else (1 - alike.abs()).masked_fill(~candidates, LOWEST)
    return torch.softmax(apart, dim=-1) * long / short


def _attention(taps: Taps) -> Tensor:
    rows = taps.candidates.shape[1] - taps.count
    asking = question_rows(taps, "transprune")
    text = first_rows(asking, rows)
    weight = asking.gather(1, text).float()
    layer = taps.want_layers("transprune")[-1] if taps.ahead is None else taps.ahead
    mass = (several(layer, text).mean(1) * weight.unsqueeze(-1)).sum(1)
    return mass / weight.sum(1, keepdim=True).clamp_min(1)


def schedule(setting: Setting) -> tuple[Placement, ...]:
    """Three stages, on lines between the released shares, none and all."""
    shares = between(SHARES, 2, setting.keep / setting.count)
    depths = (scaled(setting, entering, LAYERS) for entering in ENTERING)
    rows = (round(part * setting.count / setting.group) * setting.group for part in shares)
    return staged(setting, depths, rows)


METHOD = Method(
    name="transprune",
    paper="arXiv:2507.20630",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=schedule,
    needs=frozenset({"layers", "text", "blocks"}),
    wishes=frozenset({"ahead"}),
    notes="how far blocks turn and stretch a token, and the prompt's attention, in three stages",
    options={"alpha": 0.5, "compat": "paper"},
    tunes={"alpha": (0.25, 0.75), "compat": ("code",)},
    passes_on=transition,
    licence="MIT",
    cost="O(N)",
)
