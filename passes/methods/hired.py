"""HiRED: every tile of a picture gets the share that the whole picture's class token gives it.

Paper: Arif et al., "HiRED: Attention-Guided Token Dropping for Efficient Inference of
High-Resolution Vision-Language Models", AAAI 2025, arXiv:2408.10945.  A picture is shown whole
(tile 0, on the same grid of n places as every other tile) and in P - 1 tiles of it.  Per tile, with
A the tower's attention after the softmax, e and f over its n places:

    e   = mean_h A[CLS, :] of the first layer         f = mean_h A[CLS, :] of the last layer
    B_0 = min(⌊α B⌋, n), α = 1/2                      what the whole picture keeps, of B
    s_i = Σ e over the region of tile i in the whole picture;  B_i = (B - B_0) s_i / Σ s

The B_i tokens of largest f stay in each tile.  One stage in front of the decoder, order kept.  A
model that shows its image once keeps the B of largest f (published for LLaVA-1.5).

Paper against code: the paper sums e over the region; the code counts the region's places among the
⌊n (1 - α)⌋ of largest e, and takes runs of the flattened map for regions, strips where the tiles
lie in several columns.  Here a region is the tile's own rectangle; ``compat="code"`` is the code.

Where we differ: rounding leaves nothing over (the code rounds down, so its length is data), nor
does padding that is cropped off: the total is B, and what a tile cannot fill goes to the best of
others (``quota.py``).  Newline rows, which the code leaves out, go first.  The rectangle is that of
the tile on the canvas; where a picture was padded to fit three or more tiles it is a little off.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.ir.mosaic import Mosaic
from tokopt.ir.places import Places
from tokopt.passes.methods import settings
from tokopt.passes.methods.method import Method, Taps
from tokopt.passes.methods.quota import by_quota, quotas
from tokopt.passes.methods.rows import rank_of, relay_attention, top_rows
from tokopt.passes.methods.schedules import before_decoder


def score(taps: Taps) -> Tensor:
    """Return what is above 1 at the rows within their tile's share, ``[B, N]`` (``quota.py``)."""
    tower, places = taps.want_tower("hired"), taps.want_places("hired")
    if tower.relay is None or tower.first is None:
        raise UnsupportedError(
            "hired needs the tower's class token, and there is none",
            hint="vflowopt reads a tower without class token",
        )
    last = tower.arrive(relay_attention(tower.layer, tower.relay), 0.0)
    if places.shape[0] == 1:
        return last
    first = tower.arrive(relay_attention(tower.first, tower.relay), 0.0)
    mosaic = _mosaic(places)
    whole = taps.candidates & (places.tile == mosaic.whole)
    alpha = settings.number(taps, "hired", "alpha", 0.5, 0.0, 1.0)
    most = places.shape[1] * places.shape[2]
    share = min(int(alpha * taps.keep), most)
    if settings.choice(taps, "hired", "compat", "paper", "code") == "paper":
        region, weight = _rectangle(places, mosaic), first
    else:
        region = rank_of(whole) * (places.shape[0] - 1) // most
        weight = top_rows(first, whole, int(most * (1 - alpha))).float()
    parts = quotas(_sums(weight * whole, region, places.shape[0] - 1), taps.keep - share)
    left, right = parts.narrow(1, 0, mosaic.whole), parts.narrow(1, mosaic.whole, _behind(mosaic))
    quota = torch.cat([left, torch.full_like(parts[:, :1], share), right], dim=1)
    return by_quota(last, torch.where(taps.candidates, places.tile, -1), quota)


def _mosaic(places: Places) -> Mosaic:
    if places.mosaic is None:
        raise UnsupportedError(
            f"hired shares the tokens out over the tiles of one picture, and the order of the rows "
            f"does not tell how {places.shape[0]} tiles lie in it",
            expected="a whole picture and its tiles, put together line by line",
            hint="vflowopt ranks the rows of all images together",
        )
    return places.mosaic


def _behind(mosaic: Mosaic) -> int:
    return mosaic.rows * mosaic.columns - mosaic.whole


def _rectangle(places: Places, mosaic: Mosaic) -> Tensor:
    """Return the number, without the whole, of the tile in which each place of the whole lies."""
    down = places.row * mosaic.rows // places.shape[1]
    return down * mosaic.columns + places.column * mosaic.columns // places.shape[2]


def _sums(weight: Tensor, region: Tensor, count: int) -> Tensor:
    """Return the sum of weights in each region, ``[B, count]``."""
    none = weight.new_zeros(weight.shape[0], count)
    return none.scatter_add(1, region.clamp(0, count - 1), weight)


METHOD = Method(
    name="hired",
    paper="arXiv:2408.10945",
    roles=frozenset({"decoder"}),
    score=score,
    schedule=before_decoder,
    needs=frozenset({"tower", "places"}),
    notes="a share of the tokens for every tile, by the class token's first view of the picture",
    licence="MIT",
    cost="O(N)",
    options={"alpha": 0.5, "compat": "paper"},
    tunes={"alpha": (0.25, 0.75), "compat": ("code",)},
)
