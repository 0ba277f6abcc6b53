"""TokenCut: the normalised cut of the patches by their keys, foreground first.

Paper: Wang et al., "Self-Supervised Transformers for Unsupervised Object Discovery using
Normalized Cut", CVPR 2022, arXiv:2202.11539.  k̂_i are the keys of the last layer, heads side by
side, class token left out, scaled to length 1:

    W_ij = 1 if k̂_i · k̂_j > τ else ε,  D = diag(row sums)       τ = 0.2, ε = 1e-5
    (D - W) v = λ D v,  v of the second smallest λ;  score = v or -v

The sign is the one with which the row of largest |v| lies above the mean of v (the foreground).

No target has an eigenvector operator.  With u ∝ D^½ 1 of length 1, y = D^½ v is the largest
eigenvector of M = ½ (I + D^-½ W D^-½) - u uᵀ, and 9 squarings are 512 power steps; of the result,
which is y yᵀ, the column of the largest diagonal is taken.  In fp64: squaring doubles errors.
Where the second and third λ agree v is a mix of both: the diagonal and v are rounded to six places,
so that rows that are equal but for errors are equal, and the first is taken on every target.

Native is a cut in two of which the seed's connected part is the object; here the top-k of v stays.
W holds the visual tokens only: n x n, 9 · 2n³ products.  One stage at the end of the tower.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.fold import first_rows, normalised, rows_at
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.schedules import tower_end

THRESHOLD, FAINT = 0.2, 1e-5
SQUARINGS = 9
TINY, PLACES = 1e-300, 1e6


def score(taps: Taps) -> Tensor:
    """Return v with its sign, 0 at rows that are no candidates, fp32 ``[B, N]``."""
    key = taps.want_layers("tokencut")[-1].key
    rows = first_rows(taps.candidates, taps.count)
    real = taps.candidates.gather(1, rows).double()
    keys = normalised(rows_at(key.transpose(1, 2).flatten(2), rows))
    joined = torch.where(keys @ keys.transpose(-2, -1) > THRESHOLD, 1.0, FAINT).double()
    vector = _second(joined * real.unsqueeze(1) * real.unsqueeze(2), real)
    seed = vector.abs().argmax(1, keepdim=True)
    mean = vector.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp_min(1)
    signed = torch.where(vector.gather(1, seed) >= mean, vector, -vector)
    none = torch.zeros_like(taps.candidates, dtype=torch.float32)
    return none.scatter(1, rows, signed.float())


def _second(joined: Tensor, real: Tensor) -> Tensor:
    """Return the second eigenvector of ``[B, n, n]`` with its D, ``[B, n]``, of length 1."""
    root = joined.sum(-1).sqrt()
    inverse = real / root.clamp_min(FAINT)
    first = root / root.square().sum(-1, keepdim=True).sqrt().clamp_min(TINY)
    unit = torch.eye(joined.shape[-1], dtype=joined.dtype, device=joined.device)
    scaled = joined * inverse.unsqueeze(1) * inverse.unsqueeze(2)
    power = 0.5 * (unit * real.unsqueeze(1) + scaled) - first.unsqueeze(1) * first.unsqueeze(2)
    for _ in range(SQUARINGS):
        power = power @ power
        power = power / power.square().sum((1, 2), keepdim=True).sqrt().clamp_min(TINY)
    largest = _rounded((power * unit).sum(-1)).argmax(1).reshape(-1, 1, 1)
    column = power.gather(2, largest.expand(-1, power.shape[1], 1)).squeeze(2) * inverse
    return _rounded(column / column.square().sum(1, keepdim=True).sqrt().clamp_min(TINY))


def _rounded(values: Tensor) -> Tensor:
    return torch.round(values * PLACES) / PLACES


METHOD = Method(
    name="tokencut",
    paper="arXiv:2202.11539",
    licence="MIT",
    cost="O(N³)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers"}),
    notes="normalised cut of the last layer's keys, foreground first",
    square="it cuts the graph of all pairs of visual rows",
)
