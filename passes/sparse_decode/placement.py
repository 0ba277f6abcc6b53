"""Placement: which layers of decode read all rows and choose, measured on what layers attend to.

The paper's numbers are read off one model (28 layers: 2 full, then 3 that choose at 2, 14 and 22).
Other depths get them by share.  Which layers do so can be measured: a layer that follows another's
choice loses the probability that its heads give, in the mean, to rows that are not chosen.  Of so
many layers that read all rows, those of least loss in all are found exactly (dynamic programming
over the last that chose, as Kascade, arXiv 2512.16391, places its anchors).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cache

from torch import Tensor

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.masked import best_pages
from tokopt.passes.sparse_decode.pages import Pages

DEPTH, FULL, SELECT = 28, 2, (2, 14, 22)
"""The published layers, of so many."""


def published(layers: int, breaks: Collection[int] = ()) -> Groups:
    """Return the paper's layers scaled to a depth; none follows a choice across ``breaks``.

    ``breaks`` are layers in front of which rows are dropped.  Raises ``UnsupportedError`` for a
    decode with too few layers.
    """
    full = full_layers(layers)
    count = max(1, round(len(SELECT) * min(layers, DEPTH) / DEPTH))
    scaled = {max(full, round(depth * layers / DEPTH)) for depth in SELECT[:count]}
    inner = {at for at in breaks if 0 < at < layers}
    return grouped(layers, {*range(full), *scaled, *inner})


def full_layers(layers: int) -> int:
    """Return how many layers in front read all rows; a sparse one is always left."""
    if layers < 2:
        raise UnsupportedError(
            f"sparse decode of {layers} layer(s)",
            expected="at least two: one that chooses and one that follows",
        )
    return min(max(1, round(FULL * layers / DEPTH)), layers - 2)


def least_loss(lost: Sequence[Sequence[float]], dense: int, breaks: Collection[int] = ()) -> Groups:
    """Return groups of which ``dense`` layers read all rows, of least loss; ties go to early ones.

    ``lost[j][i]`` is what layer i loses with layer j's choice.  Layers in front of the first that
    chooses, and those that none follows, are full.
    """
    layers = len(lost)
    forced = {at for at in breaks if 0 < at < layers}

    @cache
    def best(depth: int, source: int, left: int) -> tuple[float, tuple[int, ...]]:
        """Return the least loss from ``depth`` on, and the layers there that read all rows."""
        if depth == layers:
            return (0.0 if left == 0 else float("inf")), ()
        options = []
        if left:
            loss, chosen = best(depth + 1, depth, left - 1)
            options.append((loss, (depth, *chosen)))
        if source >= 0 and depth not in forced:
            loss, chosen = best(depth + 1, source, left)
            options.append((loss + lost[source][depth], chosen))
        return min(options, default=(float("inf"), ()))

    _, whole = best(0, -1, max(dense, 1 + len(forced)))
    return grouped(layers, whole)


def grouped(layers: int, dense: Collection[int]) -> Groups:
    """Return groups of the layers that read all rows: those choose that a sparse one follows."""
    select = [depth for depth in dense if depth + 1 < layers and depth + 1 not in dense]
    full = [depth for depth in dense if depth not in select]
    return Groups(layers, tuple(sorted(full)), tuple(sorted(select)))


def losses(probabilities: Sequence[Tensor], pages: Pages) -> list[list[float]]:
    """Return ``lost[j][i]`` of layers that attend so, fp32 ``[B, H, T]`` each, all of one length.

    Where two layers have other lengths nothing of j's choice is of use to i: 1.
    """
    rows = [_kept(one.max(1).values, pages) for one in probabilities]
    means = [one.mean(1) for one in probabilities]
    return [
        [
            1.0 - float((mean * kept).sum(1).mean()) if mean.shape == kept.shape else 1.0
            for mean in means
        ]
        for kept in rows
    ]


def _kept(largest: Tensor, pages: Pages) -> Tensor:
    """Return fp32 ``[B, T]``: 1 at the rows of the pages that stay."""
    kept = largest.new_zeros(largest.shape)
    for item, row in enumerate(largest):
        for page in best_pages([float(one.sum()) for one in row.split(pages.page)], pages):
            kept[item, page * pages.page : (page + 1) * pages.page] = 1.0
    return kept


def measured_pages(rows: int, pages: Pages) -> Pages:
    """Return the pages that layers are compared with on caches of so many rows.

    Those that are kept; where a cache has less than twice as many, a quarter of its own, of smaller
    pages where it has few: else nothing would be dropped, and nothing measured.
    """
    if rows >= 2 * pages.rows:
        return pages
    size = max(1, min(pages.page, rows // 16))
    kept = max(1, rows // size // 4)
    return Pages(size, kept, max(1, kept * pages.recent // pages.pages))
