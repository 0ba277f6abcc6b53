"""Representative: one row that stands for all that skip some layers, and what they get from it.

Evo-ViT's slow path (arXiv:2108.01390) as ToC3D uses it (arXiv:2407.05221), with any method's score:
of the K best tokens the last gives its place to the mean r of itself and of all that are not among
them.  K rows go through the layers; at the end the tokens r stands for get what r gained:

    x <- x + (r' - r)

Where we differ: r is the plain mean (ToC3D's weights favour the least informative tokens, and a
score of any sign is no weight).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.fold import rows_at


def entering(hidden: Tensor, candidates: Tensor, stay: Tensor, place: Tensor) -> Tensor:
    """Return the rows that go through the layers, ``[B, K, C]``: at ``place`` the mean.

    ``hidden`` is ``[B, N, C]``, ``candidates`` bool ``[B, N]``; ``stay`` ``[B, K]`` the rows that
    go on; the mean is that of the one at ``place`` ``[B, 1]`` and the candidates not among them.
    """
    gone = candidates & ~torch.zeros_like(candidates).scatter(1, stay, torch.ones_like(stay) > 0)
    counted = gone.float().scatter(1, stay.gather(1, place), 1.0).unsqueeze(1)
    mean = counted @ hidden.float() / counted.sum(-1, keepdim=True)
    rows = rows_at(hidden, stay)
    index = place.unsqueeze(-1).expand(-1, -1, rows.shape[-1])
    return rows.scatter(1, index, mean.to(rows.dtype))


def last_chosen(scores: Tensor, candidates: Tensor, stay: Tensor) -> Tensor:
    """Return the place in ``stay`` ``[B, K]`` of the candidate that was chosen last, ``[B, 1]``.

    ``scores`` and ``candidates`` are ``[B, N]``; of equal scores the highest row is last.
    """
    chosen = torch.where(candidates, scores, float("inf")).gather(1, stay)
    return stay.shape[1] - 1 - chosen.flip(1).argmin(1, keepdim=True)


def returned(before: Tensor, entered: Tensor, left: Tensor, stay: Tensor, place: Tensor) -> Tensor:
    """Return all rows behind the layers, ``[B, N, C]``.

    ``before`` are all rows in front of them, ``[B, N, C]``; ``entered`` and ``left`` the rows
    ``stay`` as they went in and came out, ``[B, K, C]``; ``place`` ``[B, 1]`` is that of the
    representative among them.
    """
    gained = rows_at(left, place) - rows_at(entered, place)
    whole = before + gained
    own = rows_at(whole, stay.gather(1, place))
    index = place.unsqueeze(-1).expand(-1, -1, left.shape[-1])
    rows = left.scatter(1, index, own)
    return whole.scatter(1, stay.unsqueeze(-1).expand(-1, -1, rows.shape[-1]), rows)
