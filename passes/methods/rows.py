"""Rows: the attention of one query over all rows, recomputed without the full matrix.

Fused attention hides its probabilities.  One row costs ``H·N·d`` products and no ``N×N`` value, in
fp32 whatever the model's type.  Plain torch operators, traceable with symbolic sizes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.ir.dialect import OPS
from tokopt.ir.dialect.attention_rows import LOWEST as LOWEST
from tokopt.passes.methods.method import LayerTap, Taps

_attention_rows = OPS["attention_rows"].overload
TINY = torch.finfo(torch.float32).tiny


def at_row(operand: Tensor, row: int | Tensor) -> Tensor:
    """Return row ``row`` (may be negative), or row ``row[b]`` of item b, of ``[B, H, N, d]``."""
    if isinstance(row, int):
        return operand.select(2, row)
    index = row.reshape(-1, 1, 1, 1).expand(-1, operand.shape[1], 1, operand.shape[3])
    return operand.gather(2, index).squeeze(2)


def attention_row(
    query: Tensor, key: Tensor, mask: Tensor | None, row: int | Tensor, scale: float, causal: bool
) -> Tensor:
    """Return post-softmax attention of a query (see ``at_row``), fp32 ``[B, H, N]``.

    ``query`` is ``[B, H, Q, d]``, ``key`` ``[B, H or fewer, N, d]``.  ``mask`` is the query's own
    line, broadcasting to ``[B, H, N]``: bool (True: may be read) or float (added).  ``causal`` lets
    a query read the keys up to its own number, as ``scaled_dot_product_attention`` counts them.
    """
    own: int | Tensor
    if isinstance(row, int):
        own = row if row >= 0 else query.shape[2] + row
    else:
        own = row.reshape(-1, 1, 1, 1)
    bias = _bias(None if mask is None else mask.unsqueeze(-2), own if causal else None, key)
    return _attention_rows(at_row(query, row).unsqueeze(2), key, bias, scale).squeeze(2)


def attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, rows: Tensor, scale: float, causal: bool
) -> Tensor:
    """Return post-softmax attention of queries ``rows`` ``[B, T]``, fp32 ``[B, H, T, N]``.

    ``mask`` holds the queries' own lines, broadcasting to the result.  See ``attention_row``.
    """
    index = rows.unsqueeze(1).unsqueeze(-1).expand(-1, query.shape[1], -1, query.shape[3])
    own = rows.unsqueeze(1).unsqueeze(-1)
    bias = _bias(mask, own if causal else None, key)
    return _attention_rows(query.gather(2, index), key, bias, scale)


def _bias(mask: Tensor | None, own: int | Tensor | None, key: Tensor) -> Tensor | None:
    """Return what is added to logits ``[B, H, T, N]``, fp32 and broadcasting to them.

    ``own``: the number of the last key each query may read, ``[B, 1, T, 1]``; None: all of them.
    """
    bias = mask
    if mask is not None:
        bias = torch.where(mask, 0.0, LOWEST) if mask.dtype == torch.bool else mask.float()
    if own is None:
        return bias
    later = torch.arange(key.shape[2], device=key.device) > own
    return torch.where(later, LOWEST, 0.0 if bias is None else bias)


def several(layer: LayerTap, rows: Tensor) -> Tensor:
    """Return the attention of queries ``rows`` ``[B, T]``, fp32 ``[B, H, T, N]``."""
    assert layer.rows is not None
    return layer.rows(rows)


def dot(query: Tensor, key: Tensor) -> Tensor:
    """Return products of one query ``[B, H, d]`` with all keys ``[B, H or fewer, N, d]``.

    fp32 ``[B, H, N]``; query heads share key heads in equal groups of neighbours.
    """
    heads = key.shape[1]
    grouped = query.float().unflatten(1, (heads, query.shape[1] // heads))
    return torch.matmul(grouped, key.float().transpose(-2, -1)).flatten(1, 2)


def relay_attention(layer: LayerTap, relay: int | None) -> Tensor:
    """Return the head mean of the relay's attention over all rows, fp32 ``[B, N]``.

    Without a relay the query is the mean over rows (FlowCut's form for towers without class token).
    """
    if relay is not None:
        return layer.row(relay).mean(1)
    mean = layer.query.float().mean(2)
    return torch.softmax(dot(mean, layer.key) * layer.scale, dim=-1).mean(1)


def share(mass: Tensor, candidates: Tensor) -> Tensor:
    """Return non-negative ``mass`` ``[B, N]`` over candidates only, scaled to sum 1 per item."""
    kept = mass.masked_fill(~candidates, 0.0)
    return kept / kept.sum(1, keepdim=True).clamp_min(TINY)


def rank_of(candidates: Tensor) -> Tensor:
    """Return each candidate's number among the candidates of its item, int64 ``[B, N]``."""
    return candidates.long().cumsum(1) - 1


def top_rows(values: Tensor, candidates: Tensor, count: int) -> Tensor:
    """Return the ``count`` candidates of largest value, bool ``[B, N]``; ties to the lower row."""
    ranked = torch.where(candidates, values, float("-inf"))
    order = torch.sort(ranked, dim=1, descending=True, stable=True)[1].narrow(1, 0, count)
    chosen = torch.zeros_like(candidates).scatter(
        1, order, torch.ones_like(order, dtype=torch.bool)
    )
    return chosen & candidates


def top_share(values: Tensor, candidates: Tensor, of: int) -> Tensor:
    """Return the best of each ``of`` candidates (a quarter: 4), bool ``[B, N]``; ties as above."""
    ranked = torch.where(candidates, values, float("-inf"))
    order = torch.sort(ranked, dim=1, descending=True, stable=True)[1]
    place = torch.arange(values.shape[1], device=values.device).expand(order.shape)
    rank = torch.zeros_like(order).scatter(1, order, place)
    return candidates & (rank < candidates.sum(1, keepdim=True) // of)


def group_of(taps: Taps) -> Tensor:
    """Return the number of each candidate's group among the candidates', int64 ``[B, N]``."""
    return rank_of(taps.candidates) // taps.group if taps.groups is None else taps.groups
