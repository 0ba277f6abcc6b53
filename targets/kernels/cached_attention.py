"""Attention of a few rows over a cache of codes: read once, as stored, in parts side by side.

Inductor writes the cache in full before it reads it: of 8 bits, nine bytes move for each that is
stored.  Here each program reads a part of a head's rows, as codes, for all queries that share the
head; scales go onto the query and onto the result, so that a code is only made a float, and centres
are one number for all logits (keys) or added at the end (values).  A block leaves its peak, its sum
of exponentials and its sum of rows, and a second kernel joins the blocks (Flash-Decoding, Dao et
al. 2023).  New rows, which are read as they are, are blocks of their own.  E4M3 is read bit by bit,
as half precision with other exponents, for GPUs before sm_89 have no instruction for it.

Roofline: it must read ``2 B G T d`` bytes of 8-bit codes, half of 4-bit ones, and little else
(24 bytes for every 256 rows and query channel): at 8,192 rows, 8 heads of 128, 16.8 MB, 3.5 µs at
4.8 TB/s, where fp16 takes twice that.  Measured on no GPU yet; the interpreter has proven it, and
at a head width of 128 its machine code spills no register.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

LOWEST = tl.constexpr(torch.finfo(torch.float32).min)
PRECISION = tl.constexpr("tf32x3")
"""Three products on tensor cores are as exact as fp32; one of fp32 spills registers by the KB."""
QUERIES, KEYS, PART = 16, 32, 256
"""Queries of a head in one product, the least of the hardware's; rows in one product: more spill
registers at a head width of 128; rows of a block."""

FORMS = {torch.int8: "int8", torch.uint8: "int4", torch.float8_e4m3fn: "e4m3"}
"""How codes are told to a kernel."""


@triton.jit
def block_kernel(
    query, key, value, keys, values, key_scale, key_centre, value_scale, value_centre, bias,
    peaks, sums, parts, scale, shared, rows, old, new, width, blocks, fresh_at,
    c_item, c_head, c_row, v_item, v_head, v_row, b_item, b_head, b_row, b_key,
    HEADS: tl.constexpr, BIASED: tl.constexpr, KEY_FORM: tl.constexpr, VALUE_FORM: tl.constexpr,
    WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, PART: tl.constexpr,
):  # fmt: skip
    """One program: a block of rows of one head (from ``fresh_at`` on: new rows), all its queries.

    Query number m is row ``m % rows`` of the head's ``m // rows``-th reader.
    """
    block = tl.program_id(0)
    place = tl.program_id(1)
    item = (place // HEADS).to(tl.int64)
    head = place % HEADS
    number = tl.program_id(2) * QUERIES + tl.arange(0, QUERIES)
    asked = number < shared * rows
    line = (item * HEADS + head) * shared * rows + number
    column = tl.arange(0, WIDTH)
    held = column < width
    asks = tl.load(
        query + line[:, None] * width + column[None, :],
        mask=asked[:, None] & held[None, :], other=0.0,
    ).to(tl.float32)  # fmt: skip
    factor = tl.load(key_scale + head * width + column, mask=held, other=0.0)
    centre = tl.load(key_centre + head * width + column, mask=held, other=0.0)
    last = block >= fresh_at
    begin = tl.where(last, block - fresh_at, block) * PART
    end = tl.minimum(tl.where(last, new, old), begin + PART)
    key_steps = tl.where(last, 1.0, factor)
    peak = tl.full((QUERIES,), float("-inf"), tl.float32)
    total = tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    for start in tl.range(begin, end, KEYS, num_stages=2):
        at = start + tl.arange(0, KEYS)
        inside = at < end
        stored = (at < tl.where(last, 0, end))[:, None] & held[None, :]
        fresh = (at < tl.where(last, end, 0))[:, None] & held[None, :]
        exact = ((item * HEADS + head) * new + at[:, None]) * width + column[None, :]
        there = keys + item * c_item + head * c_head + at[:, None] * c_row
        steps = _steps(there, column, stored, KEY_FORM)
        own = tl.load(key + exact, mask=fresh, other=0.0).to(tl.float32)
        # old rows are read in steps: their scale goes onto the query, their centre onto all logits
        logits = tl.dot(
            asks * key_steps[None, :], tl.trans(tl.where(last, own, steps)),
            input_precision=PRECISION,
        )  # fmt: skip
        logits += tl.where(last, 0.0, tl.sum(asks * centre[None, :], 1))[:, None]
        logits *= scale
        if BIASED:
            reader = head * shared + number // rows
            row = (number % rows)[:, None]
            there = bias + item * b_item + reader[:, None] * b_head + row * b_row
            there += (at + tl.where(last, old, 0))[None, :] * b_key
            extra = tl.load(there, mask=asked[:, None] & inside[None, :], other=0.0)
            logits = tl.maximum(logits + extra.to(tl.float32), LOWEST)
        logits = tl.where(inside[None, :], logits, float("-inf"))
        higher = tl.maximum(peak, tl.max(logits, 1))
        weights = tl.exp(logits - higher[:, None])
        before = tl.exp(peak - higher)
        there = values + item * v_item + head * v_head + at[:, None] * v_row
        steps = _steps(there, column, stored, VALUE_FORM)
        own = tl.load(value + exact, mask=fresh, other=0.0).to(tl.float32)
        read = tl.where(last, own, tl.where(stored, steps, 0.0))
        mixed = mixed * before[:, None] + tl.dot(weights, read, input_precision=PRECISION)
        total = total * before + tl.sum(weights, 1)
        peak = higher
    factor = tl.load(value_scale + head * width + column, mask=held, other=0.0)
    centre = tl.load(value_centre + head * width + column, mask=held, other=0.0)
    mixed = tl.where(last, mixed, mixed * factor[None, :] + total[:, None] * centre[None, :])
    tl.store(peaks + line * blocks + block, peak, mask=asked)
    tl.store(sums + line * blocks + block, total, mask=asked)
    tl.store(
        parts + (line[:, None] * blocks + block) * width + column[None, :], mixed,
        mask=asked[:, None] & held[None, :],
    )  # fmt: skip


@triton.jit
def _steps(there, column, stored, FORM: tl.constexpr):
    """Return the steps of codes, fp32, whose rows begin ``there``; what is not stored is some."""
    byte = column // 2 if FORM == "int4" else column
    codes = tl.load(there + byte[None, :], mask=stored, other=0)
    if FORM == "int4":
        codes = ((codes >> ((column % 2) * 4).to(tl.uint8)[None, :]) & 15).to(tl.int32) - 8
    if FORM == "e4m3":  # 4 bits of exponent around 7 at the place of half's 5 around 15
        bits = codes.to(tl.uint16)
        half = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).to(tl.float16, bitcast=True)
        return tl.where((bits & 0x7F) == 0x7F, float("nan"), half.to(tl.float32) * 256.0)
    return codes.to(tl.float32)


@triton.jit
def joining_kernel(out, peaks, sums, parts, blocks, width, WIDTH: tl.constexpr):
    """One program: the blocks of one query."""
    line = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, WIDTH)
    held = column < width
    peak = tl.full((), float("-inf"), tl.float32)
    total = tl.zeros((), tl.float32)
    mixed = tl.zeros((WIDTH,), tl.float32)
    for block in range(0, blocks):
        own = tl.load(peaks + line * blocks + block)
        both = tl.maximum(peak, own)
        before, now = tl.exp(peak - both), tl.exp(own - both)
        part = tl.load(parts + (line * blocks + block) * width + column, mask=held, other=0.0)
        total = total * before + tl.load(sums + line * blocks + block) * now
        mixed = mixed * before + part * now
        peak = both
    tl.store(out + line * width + column, (mixed / total).to(out.dtype.element_ty), mask=held)


def launch(
    run: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    key_centre: Tensor,
    value_scale: Tensor,
    value_centre: Tensor,
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Return ``[B, H, R, d]``, see ``tokopt::cached_attention``; ``run`` wraps a kernel."""
    items, heads, rows, width = query.shape
    own, new = key.shape[1:3]
    old, shared = keys.shape[2] - new, heads // own
    fresh_at = triton.cdiv(old, PART)
    blocks = fresh_at + triton.cdiv(new, PART)
    query, key, value = query.contiguous(), key.contiguous(), value.contiguous()
    keys, values = keys.contiguous(), values.contiguous()
    out = torch.empty_like(query)
    peaks = query.new_empty([items, heads, rows, blocks], dtype=torch.float32)
    sums = torch.empty_like(peaks)
    parts = query.new_empty([items, heads, rows, blocks, width], dtype=torch.float32)
    added = peaks if bias is None else bias.expand(items, heads, rows, old + new)
    wide = max(16, triton.next_power_of_2(width))
    run(block_kernel)[(blocks, items * own, triton.cdiv(shared * rows, QUERIES))](
        query, key, value, _bytes(keys), _bytes(values),
        key_scale.contiguous(), key_centre.contiguous(),
        value_scale.contiguous(), value_centre.contiguous(), added,
        peaks, sums, parts, scale, shared, rows, old, new, width, blocks, fresh_at,
        *keys.stride()[:3], *values.stride()[:3], *added.stride(),
        HEADS=own, BIASED=bias is not None,
        KEY_FORM=FORMS[keys.dtype], VALUE_FORM=FORMS[values.dtype],
        WIDTH=wide, QUERIES=QUERIES, KEYS=KEYS, PART=PART,
    )  # fmt: skip
    run(joining_kernel)[(items * heads * rows,)](out, peaks, sums, parts, blocks, width, WIDTH=wide)
    return out


def _bytes(codes: Tensor) -> Tensor:
    return codes if codes.dtype == torch.int8 else codes.view(torch.uint8)


@triton_op("tokopt_triton::cached_attention", mutates_args=())
def cached_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor,
    key_centre: Tensor,
    value_scale: Tensor,
    value_centre: Tensor,
    bias: Tensor | None,
    scale: float,
) -> Tensor:
    """Do what ``tokopt::cached_attention`` does."""
    given = (query, key, value, keys, values, key_scale, key_centre, value_scale, value_centre)
    return launch(wrap_triton, *given, bias, scale)


def moved_bytes(*args: Any) -> int:
    """Return the bytes one run must read and write: all operands, and as much as the query."""
    return sum(one.nbytes for one in (*args, args[0]) if isinstance(one, Tensor))
