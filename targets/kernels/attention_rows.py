"""Attention of a few queries: one pass over the keys, and no line of logits but those asked for.

Inductor writes the product of few rows and all keys as a general matrix product in fp32: it first
writes the keys once more as fp32, which triples the bytes.  Here each program reads a block of keys
once, in the type they have, for all the queries that share the head, writes their logits and their
sum of exponentials; a second, small kernel scales the logits to probabilities in place.

Roofline: it must read ``B G N d`` keys once and write ``B H R N`` fp32 (and touch those once more,
from the cache): for one row of LLaVA-1.5-7B at half precision (32 heads, 576 rows, d 128) 4.7 MB
of keys and 0.07 MB of probabilities, 1 µs at 4.8 TB/s, so launches decide.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
PRECISION = tl.constexpr("tf32x3")
"""Three products on tensor cores are as exact as fp32; one of fp32 spills registers by the KB."""
QUERIES, KEYS = 16, 64
"""Rows of queries and keys in one product: the least of the hardware's, and what registers hold."""


@triton.jit
def logits_kernel(
    query, key, bias, out, peaks, sums, scale,
    shared, rows, keys, width, blocks,
    q_item, q_head, q_row, q_column,
    k_item, k_head, k_row, k_column,
    b_item, b_head, b_row, b_key,
    HEADS: tl.constexpr, BIASED: tl.constexpr,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One program: a block of keys of one head, a block of the queries that read it.

    ``shared`` query heads read one key head; query number m is row ``m % rows`` of the head's
    ``m // rows``-th reader.
    """
    block = tl.program_id(0)
    place = tl.program_id(1)
    item = (place // HEADS).to(tl.int64)
    head = place % HEADS
    number = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    asked = number < shared * rows
    reader = head * shared + number // rows
    row = number % rows
    at = block * KEYS + tl.arange(0, KEYS)
    inside = at < keys
    column = tl.arange(0, WIDTH)
    held = column < width

    queries = tl.load(
        query + item * q_item + reader[:, None] * q_head + row[:, None] * q_row
        + column[None, :] * q_column,
        mask=asked[:, None] & held[None, :], other=0.0,
    )  # fmt: skip
    read = tl.load(
        key + item * k_item + head * k_head + at[None, :] * k_row + column[:, None] * k_column,
        mask=inside[None, :] & held[:, None], other=0.0,
    )  # fmt: skip
    logits = tl.dot(queries.to(tl.float32), read.to(tl.float32), input_precision=PRECISION) * scale
    both = asked[:, None] & inside[None, :]
    if BIASED:
        logits += tl.load(
            bias + item * b_item + reader[:, None] * b_head + row[:, None] * b_row
            + at[None, :] * b_key,
            mask=both, other=0.0,
        )  # fmt: skip
        logits = tl.maximum(logits, LOWEST)
    line = (item * HEADS * shared + reader) * rows + row
    tl.store(out + line[:, None] * keys + at[None, :], logits, mask=both)
    logits = tl.where(inside[None, :], logits, float("-inf"))
    peak = tl.max(logits, 1)
    tl.store(peaks + line * blocks + block, peak, mask=asked)
    tl.store(sums + line * blocks + block, tl.sum(tl.exp(logits - peak[:, None]), 1), mask=asked)


@triton.jit
def scaling_kernel(out, peaks, sums, keys, blocks, BLOCKS: tl.constexpr, KEYS: tl.constexpr):
    """One program: the logits of one line become probabilities, in place."""
    line = tl.program_id(0).to(tl.int64)
    peak = tl.full((), float("-inf"), tl.float32)
    for start in range(0, blocks, BLOCKS):
        at = start + tl.arange(0, BLOCKS)
        found = tl.load(peaks + line * blocks + at, mask=at < blocks, other=float("-inf"))
        peak = tl.maximum(peak, tl.max(found, 0))
    whole = tl.zeros((), tl.float32)
    for start in range(0, blocks, BLOCKS):
        at = start + tl.arange(0, BLOCKS)
        found = tl.load(peaks + line * blocks + at, mask=at < blocks, other=float("-inf"))
        total = tl.load(sums + line * blocks + at, mask=at < blocks, other=0.0)
        whole += tl.sum(total * tl.exp(found - peak), 0)
    for start in range(0, keys, KEYS):
        at = start + tl.arange(0, KEYS)
        logits = tl.load(out + line * keys + at, mask=at < keys, other=float("-inf"))
        tl.store(out + line * keys + at, tl.exp(logits - peak) / whole, mask=at < keys)


def launch(run: Any, query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Return fp32 ``[B, H, R, N]``, see ``tokopt::attention_rows``; ``run`` wraps a kernel."""
    items, heads, rows, width = query.shape
    own, keys = key.shape[1:3]
    shared, blocks = heads // own, triton.cdiv(keys, KEYS)
    out = query.new_empty([items, heads, rows, keys], dtype=torch.float32)
    peaks = query.new_empty([items, heads, rows, blocks], dtype=torch.float32)
    sums = torch.empty_like(peaks)
    added = out if bias is None else bias.expand(out.shape)
    grid = (blocks, items * own, triton.cdiv(shared * rows, QUERIES))
    run(logits_kernel)[grid](
        query, key, added, out, peaks, sums, scale, shared, rows, keys, width, blocks,
        *query.stride(), *key.stride(), *added.stride(),
        HEADS=own, BIASED=bias is not None,
        WIDTH=max(16, triton.next_power_of_2(width)), QUERIES=QUERIES, KEYS=KEYS,
    )  # fmt: skip
    run(scaling_kernel)[(prod([items, heads, rows]),)](
        out, peaks, sums, keys, blocks, BLOCKS=128, KEYS=1024
    )
    return out


@triton_op("tokopt_triton::attention_rows", mutates_args=())
def attention_rows(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Do what ``tokopt::attention_rows`` does."""
    return launch(wrap_triton, query, key, bias, scale)


def moved_bytes(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> int:
    """Return the bytes one run must read and write."""
    written = 4 * prod([*query.shape[:3], key.shape[2]])
    given = [t for t in (query, key, bias) if t is not None]
    return sum(t.numel() * t.element_size() for t in given) + written
