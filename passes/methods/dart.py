"""DART: tokens unlike a few pivots; what looks like a pivot is duplication.

Paper: Wen et al., "Stop Looking for Important Tokens in Multimodal Language Models: Duplication
Matters More", EMNLP 2025, arXiv:2502.11494.  Entering layer K = 2 of 32, keys k of layer K-1 after
positions, all heads in a row:

    pivots  the 4 visual and the 4 text rows (behind the image) of largest ‖k‖₁
    each pivot in turn takes, of the visual tokens left, the q of lowest cos(x, x_pivot)

Kept: the 4 visual pivots and what the pivots took; text stays, positions stay.

Paper against code: the code runs through the pivots as a Python set has them, which nothing
defines; here visual pivots come first, then text pivots, each kind by size.  q = ⌊T/8⌋ there, so
that 4 + 8q tokens stay and not T; here T stay, and the takes of two pivots differ by one at most.

Here: x is the stream at the site; the code first puts it through the model's final norm, whose
weights no tap has (its division by the row's size changes no cosine).  Where rows leave in groups a
group is its mean, and T and the pivots count groups.  With fewer than 4 text rows behind the image
these take turns again.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokopt.passes.methods.fold import rows_at
from tokopt.passes.methods.greedy import greedy, group_means, products, unit_rows
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.question import question_rows
from tokopt.passes.methods.rows import LOWEST, TINY
from tokopt.passes.methods.schedules import entering

ENTERING, LAYERS = 2, 32
PIVOTS = 4
"""Of each kind."""


def score(taps: Taps) -> Tensor:
    """Return the order of choice ``[B, N]``: the visual pivots, then what each pivot takes."""
    rows, steps = unit_rows(taps), taps.keep // taps.group
    size = taps.want_layers("dart")[-1].key.float().abs().sum((1, 3))
    text = _largest(size, question_rows(taps, "dart"))
    size = group_means(taps, size.unsqueeze(-1)).squeeze(-1)
    given = (rows, size / size.amax(1, keepdim=True).clamp_min(TINY), text)  # no more than cosines
    visual = torch.zeros_like(text[:, : min(PIVOTS, steps)])
    own, pivots = visual.shape[1], visual.shape[1] + PIVOTS
    taken = max(1, steps - own)

    def gain(state: Sequence[Tensor], given: Sequence[Tensor]) -> Tensor:
        done, visual = state
        rows, size, text = given
        turn = ((done - own) * pivots // taken).clamp(0, pivots - 1)
        pivot = torch.cat([visual, text], 1).index_select(1, turn.reshape(1))
        return torch.where(done < own, size, -products(rows, rows_at(rows, pivot)))

    def update(
        state: Sequence[Tensor], given: Sequence[Tensor], chosen: Tensor
    ) -> Sequence[Tensor]:
        """State: how many were chosen, the visual pivots so far ``[B, 4]``, oldest first."""
        done, visual = state
        longer = torch.cat([visual[:, 1:], chosen], 1)
        return done + 1, torch.where(done < own, longer, visual)

    done = torch.zeros((), dtype=torch.int64, device=rows.device)
    return greedy(taps, gain, update, (done, visual), given)


def _largest(size: Tensor, among: Tensor) -> Tensor:
    """Return the rows of largest size among some, int64 ``[B, 4]``; too few take turns."""
    ranked = torch.where(among, size, LOWEST).sort(dim=1, descending=True, stable=True)[1]
    turns = torch.arange(PIVOTS, device=size.device)
    return ranked.gather(1, turns % among.sum(1, keepdim=True).clamp_min(1))


METHOD = Method(
    name="dart",
    paper="arXiv:2502.11494",
    licence="Apache-2.0",
    cost="O(N·K)",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=entering(ENTERING, LAYERS),
    needs=frozenset({"layers", "text"}),
    notes="tokens unlike pivots with the largest keys, in the second decoder layer",
)
