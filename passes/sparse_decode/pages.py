"""Pages: how DELTA chooses which rows of a cache the layers behind a choosing one attend to.

DELTA (arXiv 2510.09883, section 3): a row's score is the largest probability that any head of the
choosing layer gives it, a page's score the sum over its rows; the pages of highest score stay, the
last ones always.  One choice for all heads, anew for every token.  Counts are constants: where a
cache has fewer pages than are kept, numbers of pages behind its end stand in, and readers leave
their rows out.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool1d, pad

from tokopt.ir.dialect import OPS
from tokopt.ir.errors import InputError


@dataclass(frozen=True)
class Pages:
    """``pages`` of ``page`` rows are kept, the last ``recent`` among them.  The paper's numbers.

    Raises ``InputError`` for numbers that fit no cache.
    """

    page: int = 16
    pages: int = 64
    recent: int = 8

    def __post_init__(self) -> None:
        if self.page < 1 or not 1 <= self.recent <= self.pages:
            raise InputError(
                f"sparse decode with page={self.page} pages={self.pages} recent={self.recent}",
                expected="pages of at least one row, and 1 ≤ recent ≤ pages",
                hint="the newest row lies in the last page, which is always kept",
            )

    @property
    def rows(self) -> int:
        """How many rows are kept."""
        return self.page * self.pages


def row_scores(query: Tensor, keys: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """Return fp32 ``[B, T]``: the largest probability that a head gives each row.

    ``query`` is ``[B, H, 1, D]``, ``keys`` ``[B, G, T, D]`` with H a multiple of G (heads in order
    share one), ``mask`` ``[B or 1, H or 1, 1, T]``: bool, true where a row is read, or a summand.
    """
    items, heads, width = query.shape[0], query.shape[1], query.shape[3]
    shared = keys.shape[1]
    grouped = query.float().reshape(items, shared, heads // shared, width)
    logits = torch.matmul(grouped, keys.float().transpose(2, 3)) * scale
    logits = logits.reshape(items, heads, 1, keys.shape[2])
    if mask is not None:
        logits = logits + mask.float() if mask.is_floating_point() else _barred(logits, mask)
    return torch.softmax(logits, -1).amax((1, 2))


def _barred(logits: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, logits, float("-inf"))


def chosen_pages(scores: Tensor, pages: Pages) -> Tensor:
    """Return int64 ``[B, pages]``: ascending numbers of the pages that stay, of ``[B, T]`` scores.

    Ties go to the lower number.
    """
    rows = scores.shape[1]
    whole = pad(scores, [0, pages.page * (pages.pages + 1) - 1])
    sums = avg_pool1d(whole.unsqueeze(1), pages.page, pages.page).squeeze(1) * pages.page
    starts = torch.arange(sums.shape[1], device=scores.device) * pages.page
    there = starts < rows
    recent = there & (starts + pages.recent * pages.page >= rows)
    ranked = torch.where(there, sums, -1.0)
    candidates = (~recent).expand(ranked.shape)
    return torch.as_tensor(OPS["select"].overload(ranked, candidates, pages.pages))


def rows_of(chosen: Tensor, page: int) -> Tensor:
    """Return int64 ``[B, pages · page]``: the rows of pages, ascending; some may be behind all."""
    within = torch.arange(page, device=chosen.device)
    return (chosen.unsqueeze(-1) * page + within).flatten(1)


def present(rows: Tensor, past: Tensor) -> Tensor:
    """Return bool ``[B, R]``: which rows lie in ``past`` ``[B, G, S, D]``."""
    return rows < past.shape[2]


def places(rows: Tensor, there: Tensor, past: Tensor) -> Tensor:
    """Return int64 ``[B·G·R]``: where rows of ``past`` ``[B, G, S, D]`` lie in ``[B·G·S, D]``.

    Row 0 stands where there is none.
    """
    items, shared, length = past.shape[:3]
    index = torch.where(there, rows, 0)
    starts = torch.arange(items * shared, device=rows.device).reshape(items, shared, 1) * length
    return (starts + index.unsqueeze(1)).flatten()


def headed(few: Tensor, rows: Tensor) -> Tensor:
    """Return ``[B, G, R, D]`` of ``few`` ``[B·G·R, D]``."""
    return few.reshape(rows.shape[0], -1, rows.shape[1], few.shape[1])


def joined(few: Tensor, new: Tensor, heads: int) -> Tensor:
    """Return ``[B, heads, R + 1, D]``: few rows and the new one, heads in order sharing one."""
    rows = torch.cat([few, new], 2)
    items, shared, count, width = rows.shape
    if shared == heads:
        return rows
    every = rows.unsqueeze(2).expand(items, shared, heads // shared, count, width)
    return every.reshape(items, heads, count, width)


def narrowed(there: Tensor, rows: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mask ``[B, 1 or H, 1, R + 1]`` of few rows and the new one.

    ``mask`` is that of all rows: bool, or a summand, whose dtype the result then has.
    """
    new = torch.ones_like(there[:, :1])
    kept = torch.cat([there, new], 1).unsqueeze(1).unsqueeze(1)
    if mask is None:
        return kept
    every = mask.expand(rows.shape[0], mask.shape[1], 1, mask.shape[3])
    index = torch.where(there, rows, 0).unsqueeze(1).unsqueeze(1)
    few = every.gather(3, index.expand(rows.shape[0], mask.shape[1], 1, rows.shape[1]))
    last = every[..., -1:]
    own = torch.cat([few, last], 3)
    return kept & own if own.dtype == torch.bool else torch.where(kept, own, float("-inf"))
