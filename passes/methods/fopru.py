"""FoPru: keep the patches that other patches look at.

Paper: Jiang et al., "FoPru: Focal Pruning for Efficient Large Vision-Language Models", 2024,
arXiv:2411.14164.  No official code was found; beside the paper there is a port
(hydrainfer).  A is the attention among patches alone, class row and column taken away, in the layer
whose output is the feature:

    u_j = mean_i mean_h A[i, j]         received
    w_i = mean_j mean_h A[i, j]         given

One stage at the end of the tower, top-k in original order.

Paper against port: ``scores="attention"`` (the default) reads A after the softmax; given attention
is then nearly the same for all, and u is the score.  ``scores="logits"`` is the port: A before the
softmax, and whichever of u and w has the larger variance.  Logits are averaged without their
matrix: the mean over i of q_i · k_j is q̄ · k_j.

``strategy="rows"`` keeps whole lines of the grid: those whose scores sum to most (paper: the
⌊ratio · lines⌋ best).  The count is exact here: of the line that does not fit whole, the best
patches stay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods import settings
from tokopt.passes.methods.method import LayerTap, Method, Taps
from tokopt.passes.methods.received import received
from tokopt.passes.methods.rows import LOWEST, TINY, dot
from tokopt.passes.methods.schedules import tower_end


def score(taps: Taps) -> Tensor:
    """Return how much each patch is looked at, ``[B, N]``."""
    layer = taps.want_layers("fopru")[-1]
    if settings.choice(taps, "fopru", "scores", "attention", "logits") == "logits":
        focus = _by_logits(layer, taps.candidates)
    else:
        focus = received(layer, taps.candidates, taps.count, everyone=False)
    if settings.choice(taps, "fopru", "strategy", "rank", "rows") == "rows":
        return _by_lines(taps, focus)
    return focus


def _by_lines(taps: Taps, focus: Tensor) -> Tensor:
    """Return scores by which whole lines go, least sum first, and patches in a line."""
    places = taps.want_places("fopru")
    tiles, lines, _ = places.shape
    line = torch.where(taps.candidates, places.tile * lines + places.row, 0)
    least = torch.where(taps.candidates, focus, LOWEST * -1).amin(1, keepdim=True)
    above = torch.where(taps.candidates, focus - least, 0.0)
    none = focus.new_zeros(focus.shape[0], tiles * lines)
    sums = none.scatter_add(1, line, torch.where(taps.candidates, focus, 0.0))
    best = torch.sort(sums, dim=1, descending=True, stable=True)[1]
    rank = torch.sort(best, dim=1)[1].gather(1, line)
    most = above.amax(1, keepdim=True).clamp_min(TINY)
    return (tiles * lines - rank).float() + 0.5 * above / most


def _by_logits(layer: LayerTap, candidates: Tensor) -> Tensor:
    heads, groups = layer.key.shape[1], layer.query.shape[1] // layer.key.shape[1]
    inside = candidates[:, None, :, None].float()
    count = inside.sum(2).clamp_min(1)
    asking = (layer.query.float() * inside).sum(2) / count
    asked = (layer.key.float() * inside).sum(2) / count
    got = dot(asking, layer.key).mean(1) * layer.scale
    query = layer.query.float().unflatten(1, (heads, groups))
    given = (query * asked[:, :, None, None]).sum(-1).mean((1, 2)) * layer.scale
    focal = _spread(got, candidates) >= _spread(given, candidates)
    return torch.where(focal, got, given)


def _spread(values: Tensor, candidates: Tensor) -> Tensor:
    """Return the variance over candidates, ``[B, 1]``."""
    count = candidates.sum(1, keepdim=True).clamp_min(1)
    mean = (values * candidates).sum(1, keepdim=True) / count
    return ((values - mean).square() * candidates).sum(1, keepdim=True) / count


METHOD = Method(
    name="fopru",
    paper="arXiv:2411.14164",
    licence="no code published",
    cost="O(N²)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers"}),
    notes="attention that patches get from each other in the tower's last layer",
    options={"scores": "attention", "strategy": "rank"},
    tunes={"scores": ("logits",)},
    asks={("strategy", "rows"): frozenset({"places"})},
)
