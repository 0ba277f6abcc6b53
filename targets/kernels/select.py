"""Select in one launch: the K-th best score is found bit by bit, nothing is sorted.

A stable sort of every row, as the reference has it, moves keys and indices through memory a dozen
times.  Which rows stay needs only the K-th largest key (the classic radix select): 32 counts over
scores that lie in the nearest cache, then one pass that writes ascending indices by prefix sums.
Ties at the K-th key go to the lower index, as ``tokopt::select`` promises, by counting them.

Roofline: it must read ``5 N`` bytes (scores, candidates) and write ``8 K`` per item; at 576 rows
that is nothing, so its time is one launch and 33 short passes of one multiprocessor per item.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

LARGEST = tl.constexpr(torch.finfo(torch.float32).max)
BLOCK = 1024
"""Rows looked at together: what one program holds in registers."""


@triton.jit
def select_kernel(scores, candidates, index, rows, total, BLOCK: tl.constexpr):
    """One program: the rows of one item that stay."""
    item = tl.program_id(0).to(tl.int64)
    scores += item * rows
    candidates += item * rows
    index += item * total
    lane = tl.arange(0, BLOCK)

    threshold = tl.zeros((), tl.int64)
    for step in range(32):
        tried = threshold | (tl.full((), 1, tl.int64) << (31 - step))
        above = tl.zeros((), tl.int32)
        for start in range(0, rows, BLOCK):
            at = start + lane
            key = _key(scores, candidates, at, at < rows)
            above += tl.sum((key >= tried).to(tl.int32), 0)
        threshold = tl.where(above >= total, tried, threshold)

    larger = tl.zeros((), tl.int32)
    for start in range(0, rows, BLOCK):
        at = start + lane
        larger += tl.sum((_key(scores, candidates, at, at < rows) > threshold).to(tl.int32), 0)
    ties = total - larger

    kept = tl.zeros((), tl.int32)
    tied = tl.zeros((), tl.int32)
    for start in range(0, rows, BLOCK):
        at = start + lane
        key = _key(scores, candidates, at, at < rows)
        equal = (key == threshold).to(tl.int32)
        stays = (key > threshold) | ((equal > 0) & (tied + tl.cumsum(equal, 0) <= ties))
        place = kept + tl.cumsum(stays.to(tl.int32), 0) - 1
        tl.store(index + place, at.to(tl.int64), mask=stays)
        kept += tl.sum(stays.to(tl.int32), 0)
        tied += tl.sum(equal, 0)


@triton.jit
def _key(scores, candidates, at, inside):
    """Return whole numbers that order as the reference's scores do; -1 outside the rows.

    NaN comes below every number, a protected row above; infinities are the largest finite numbers,
    and the two zeros are one.
    """
    score = tl.load(scores + at, mask=inside, other=0.0)
    free = tl.load(candidates + at, mask=inside, other=0) != 0
    nan = score != score
    score = tl.minimum(tl.maximum(score, -LARGEST), LARGEST)
    score = tl.where(score == 0.0, 0.0, score)
    bits = score.to(tl.int32, bitcast=True)
    ordered = tl.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(tl.int64) + 0x80000000
    key = tl.where(nan, 0, ordered)
    key = tl.where(free, key, 0xFFFFFFFF)
    return tl.where(inside, key, -1)


def launch(run: Any, scores: Tensor, candidates: Tensor, total: int) -> Tensor:
    """Return int64 ``[*lead, total]``, see ``tokopt::select``; ``run`` wraps the kernel."""
    lead, rows = list(scores.shape[:-1]), scores.shape[-1]
    index = scores.new_empty([*lead, total], dtype=torch.int64)
    flags = candidates.contiguous().view(torch.uint8)
    run(select_kernel)[(prod(lead),)](
        scores.float().contiguous(), flags, index, rows, total, BLOCK=BLOCK
    )
    return index


@triton_op("tokopt_triton::select", mutates_args=())
def select(scores: Tensor, candidates: Tensor, total: int) -> Tensor:
    """Do what ``tokopt::select`` does."""
    return launch(wrap_triton, scores, candidates, total)


def moved_bytes(scores: Tensor, candidates: Tensor, total: int) -> int:
    """Return the bytes one run must read and write."""
    items = prod(scores.shape[:-1])
    return items * (5 * scores.shape[-1] + 8 * total)
