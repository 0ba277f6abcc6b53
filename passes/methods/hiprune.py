"""HiPrune: anchors of a middle layer with their neighbours, and what the last layer looks at.

Paper: Liu et al., "HiPrune: Training-Free Visual Token Pruning via Hierarchical Attention in
Vision-Language Models", arXiv:2508.00553.  With g^l_j = mean_i mean_h A^l[i, j] after the softmax
over all rows i (the class row included), T tokens to keep and a grid of W columns:

    anchors    the ⌊T·β/5⌉ largest g^object, β = 0.1
    buffers    numbers anchor ± 1 and anchor ± W, clamped to the first and last patch
    registers  the largest g^deep of the others, as many as are left

One stage at the end of the tower; object layer 8 of the 23 that are computed (from 0), deep the
last.  Adding 2 to g^deep at anchors and buffers makes this one top-k, exactly.

Paper against code: the paper's β is the share of anchors and buffers, the code divides by 5 and
drops doubles, so the share is at most β; the code is followed.  It has no test for the end of a
line: an anchor there takes in the first patch of the next.  Several tiles: numbers are clamped
within the tile.

Here: object = round(8/23 · n) for n layers before the site; ``object`` sets the layer.  Rows that
leave in groups (Qwen: means over 2x2 patches, neighbours on the coarser grid) are refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.methods import settings
from tokopt.passes.methods.fold import first_rows
from tokopt.passes.methods.method import LayerTap, Method, Taps
from tokopt.passes.methods.received import received
from tokopt.passes.methods.rows import top_rows
from tokopt.passes.methods.schedules import tower_end

OBJECT, LAYERS = 8, 23


def score(taps: Taps) -> Tensor:
    """Return g^deep, 2 more at anchors and buffers, ``[B, N]``."""
    if taps.group != 1:
        raise UnsupportedError(
            f"hiprune chooses single patches, and here rows leave in groups of {taps.group}",
            hint="flowcut and fopru judge groups by the mean of their scores",
        )
    visual, total = taps.candidates, taps.count
    deep = received(taps.want_layers("hiprune")[-1], visual, total, everyone=True)
    count = _anchors(taps)
    if not count:
        return deep
    attention = received(_object(taps), visual, total, everyone=True)
    anchors = first_rows(top_rows(attention, taps.candidates, count), count)
    return deep + 2.0 * _around(taps, anchors)


def _anchors(taps: Taps) -> int:
    beta = settings.number(taps, "hiprune", "beta", 0.1, 0.0, 1.0)
    return min(round(taps.keep * beta / 5), taps.keep // 5)


def _object(taps: Taps) -> LayerTap:
    wanted = settings.layer(taps, "hiprune", "object", OBJECT, LAYERS)
    return next(layer for layer in taps.layers if layer.depth >= wanted)


def _around(taps: Taps, anchors: Tensor) -> Tensor:
    """Return anchors ``[B, A]`` and their neighbours, bool ``[B, N]``."""
    places = taps.want_places("hiprune")
    _, height, width = places.shape
    first = places.tile * (height * width)
    cell = first + places.row * width + places.column
    start = first.gather(1, anchors)
    last = start + (height * width - 1)
    centre = cell.gather(1, anchors)
    near = [centre, centre - 1, centre + 1, centre - width, centre + width]
    inside = [torch.minimum(torch.maximum(number, start), last) for number in near]
    return (cell.unsqueeze(1) == torch.cat(inside, dim=1).unsqueeze(-1)).any(1) & taps.candidates


METHOD = Method(
    name="hiprune",
    paper="arXiv:2508.00553",
    licence="MIT",
    cost="O(N²)",
    roles=frozenset({"vision"}),
    score=score,
    schedule=tower_end,
    needs=frozenset({"layers", "places"}),
    notes="attention received in the last layer, anchors of a middle one with their neighbours",
    options={"object": "scaled", "beta": 0.1},
    tunes={"beta": (0.05, 0.3)},
)
