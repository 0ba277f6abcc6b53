"""Fused attention: dropped rows are no keys, and as queries give dropped rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import bury, dead_entries, either, filled
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.table import rule


def bias_of(mask: Tensor | None, causal: bool, shape: torch.Size, device: torch.device) -> Tensor:
    """Return what is added to the scores ``[…, Q, N]``: -inf where a key may not be read."""
    bias = torch.zeros((), device=device)
    if mask is not None and mask.dtype == torch.bool:
        bias = bias.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        bias = mask.float()
    if causal:
        seen = torch.ones(shape[-2:], dtype=torch.bool, device=device).tril()
        bias = bias.masked_fill(~seen, -torch.inf)
    return bias


def for_query_heads(part: Tensor, query: Tensor) -> Tensor:
    """Return keys or values ``[…, h, N, d]`` with each head repeated to the query's count."""
    if part.ndim < 3 or query.shape[-3] == part.shape[-3] or part.shape[-3] == 1:
        return part
    return part.repeat_interleave(query.shape[-3] // part.shape[-3], -3)


@rule("scaled_dot_product_attention")
def attention(call: Operation) -> Any:
    """``softmax(q kᵀ · scale + bias) v`` in fp32 over the keys that are there.

    A query that may read no key gets zeros, as torch's operator gives.
    """
    if call.get("dropout_p"):
        raise call.refuse("attention with dropout is random", "export the model in eval mode")
    q_dead = _rows(call, "query")
    k_dead, v_dead = (_rows(call, name) for name in ("key", "value"))
    if (k_dead is None) != (v_dead is None) or (
        k_dead is not None and v_dead is not None and bool((k_dead != v_dead).any())
    ):
        raise call.refuse("keys and values lost different rows")
    query, key, value = (filled(call.get(name), 0).float() for name in ("query", "key", "value"))
    key, value = for_query_heads(key, query), for_query_heads(value, query)
    scale = call.get("scale")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = query @ key.mT * scale
    bias = bias_of(_mask(call), bool(call.get("is_causal")), scores.shape, scores.device)
    scores = scores + bias
    if k_dead is not None:
        absent = for_query_heads(k_dead[..., None], query).mT
        scores = scores.masked_fill(absent, -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0.0)
    return bury(weights @ value, None if q_dead is None else q_dead[..., None])


def _rows(call: Operation, name: str) -> Tensor | None:
    """Return which rows ``[…, N]`` of an operand are dead; a row is so as a whole."""
    dead = call.dead(name)
    if dead is None:
        return None
    if bool((dead.any(-1) != dead.all(-1)).any()):
        raise call.refuse(f"some features of a {name} row were dropped, and others not")
    return dead.all(-1)


def _mask(call: Operation) -> Tensor | None:
    """Return the mask; entries computed from dropped rows concern absent queries or keys alone."""
    mask = call.get("attn_mask")
    dead = dead_entries(mask)
    if dead is None:
        return call.tensor("attn_mask")
    rows = either(
        None if (q := _rows(call, "query")) is None else q[..., :, None],
        None if (k := _rows(call, "key")) is None else k[..., None, :],
    )
    if rows is None or bool((dead & ~rows).any()):
        raise call.refuse("the mask of rows that stay was computed from rows that were dropped")
    return filled(mask, False if call.tensor("attn_mask").dtype == torch.bool else 0.0)  # type: ignore[union-attr]
