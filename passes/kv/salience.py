"""Salience: how much a prompt's queries read each row, of a few of them, or how near it is to text.

A row's salience is the mean attention it gets from the probe rows that see it.  Later rows are seen
by fewer probes, so the divisor is the number of probes at or behind the row, and not that of all
rows behind it (which ZipCache's released code takes: it raises late rows about tenfold).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.errors import InputError


def probe_rows(count: int, share: float = 0.1, seed: int = 0) -> Tensor:
    """Return which of ``count`` rows are probes, ascending int64: half the last, half drawn.

    At least the last row and one more where there is one; no row twice.
    """
    if count < 1 or not 0 < share <= 1:
        raise InputError(f"no probes: {share:g} of {count} rows", expected="a share of some rows")
    half = max(int(count * share / 2), 1)
    recent = torch.arange(max(count - half, 0), count)
    drawn = torch.randperm(max(count - half, 0), generator=torch.Generator().manual_seed(seed))
    return torch.cat([drawn[:half].sort().values, recent])


def probed_salience(queries: Tensor, keys: Tensor, probes: Tensor, scale: float) -> Tensor:
    """Return fp32 ``[B, H, T]`` for keys ``[B, H, T, D]``, mean over the queries of a head.

    ``queries`` ``[B, H g, P, D]`` are those of the probe rows ``probes`` ``[P]``, which see the
    rows up to themselves; the last row must be one.  ``scale`` is the layer's factor of logits.
    """
    if queries.shape[1] % keys.shape[1] or queries.shape[2] != len(probes):
        raise InputError(
            f"probe queries are {list(queries.shape)} for keys {list(keys.shape)}",
            expected="whole groups of query heads, and a query for each probe row",
        )
    grouped = queries.float().unflatten(1, (keys.shape[1], -1))
    logits = grouped @ keys.float().unsqueeze(2).transpose(3, 4) * scale
    seen = torch.arange(keys.shape[2]) <= probes[:, None]
    weights = logits.masked_fill(~seen, -torch.inf).softmax(4)
    return weights.sum(3).mean(2) / seen.sum(0)


def text_salience(hidden: Tensor, text: Tensor, heads: int) -> Tensor:
    """Return the mean product of each row with the text's rows, fp32 ``[B, heads, T]`` (VidKV).

    ``hidden`` ``[B, T, C]`` are embeddings, ``text`` bool ``[B, T]`` which rows are text.
    """
    of_text = text.float().unsqueeze(-1)
    mean = (hidden.float() * of_text).sum(1) / of_text.sum(1).clamp(min=1)
    return (hidden.float() @ mean.unsqueeze(-1)).squeeze(-1).unsqueeze(1).expand(-1, heads, -1)
