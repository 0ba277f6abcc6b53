"""Greedy: choose one unit of rows after the other, in a loop of static length inside the graph.

A method gives its recurrence: the gain of every row in the current state, and the state after a
row was chosen.  The loop is torch's ``scan``, one node with a body, whatever the number of steps:
it is traced with free sizes, saved in a PT2 archive, translated to ONNX ``Scan`` and compiled by
AOTInductor, and called on real tensors (by the oracle, by tests) it is a plain loop.  Why not
``while_loop``, which goes the same ways at the same speed: its length is data, a condition computed
at each step; a loaded file could loop for ever, and a GPU would wait for the host at every step.

No state has two dims of N rows: a step multiplies the features with the chosen row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tokopt.passes.methods.fold import normalised
from tokopt.passes.methods.method import Taps
from tokopt.passes.methods.rows import LOWEST, group_of

Gain = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""``(state, given) -> [B, N]`` fp32: how good each row would be as the next one."""
Update = Callable[[Sequence[Tensor], Sequence[Tensor], Tensor], Sequence[Tensor]]
"""``(state, given, chosen) -> state`` after row ``chosen``, int64 ``[B, 1]``; shapes stay."""


def greedy(
    taps: Taps, gain: Gain, update: Update, state: Sequence[Tensor], given: Sequence[Tensor]
) -> Tensor:
    """Return the order of choice as a score, fp32 ``[B, N]``: first chosen highest, last 1, rest 0.

    ``taps.keep // taps.group`` times the candidate of highest gain is chosen (the lowest of
    equals), and with it all rows of its group.  Rows that are no candidates have -1.  ``state`` is
    carried from step to step, ``given`` is the same in all; the functions must use no other tensor.
    """
    if taps.followed is not None:
        return _following(taps, gain, update, state, given)
    steps = taps.keep // taps.group
    order = torch.where(taps.candidates, 0.0, -1.0)
    held = len(state)

    def step(*values: Tensor) -> list[Tensor]:
        order, *now = values[: held + 1]
        number, unit, *fixed = values[held + 1 :]
        chosen = gain(now, fixed).masked_fill(order != 0, LOWEST).argmax(1, keepdim=True)
        taken = (unit == unit.gather(1, chosen)) & (order == 0)
        after = torch.where(taken, (steps - number).float(), order)
        return [after, *update(now, fixed, chosen)]

    counted = torch.arange(steps, device=order.device)
    return loop(step, [order, *state], counted, [group_of(taps), *given])[0]


def _following(
    taps: Taps, gain: Gain, update: Update, state: Sequence[Tensor], given: Sequence[Tensor]
) -> Tensor:
    """Return the order of choice that goes the way of ``taps.followed`` where gains are as good.

    At each step the best of the rows followed is chosen if no row is better by more than ``tie`` of
    the largest gain so far (gains are differences of values that large); else the best of all.  So
    another choice than the own is reached by near-ties alone.  Never traced.
    """
    assert taps.followed is not None
    steps, unit = taps.keep // taps.group, group_of(taps)
    order = torch.where(taps.candidates, 0.0, -1.0)
    largest = torch.zeros_like(order[:, :1])
    for number in range(steps):
        gains = gain(state, given).masked_fill(order != 0, LOWEST)
        known = torch.where(gains > LOWEST, gains.abs(), 0.0).amax(1, keepdim=True)
        largest = torch.maximum(largest, known)
        best, chosen = gains.amax(1, keepdim=True), gains.argmax(1, keepdim=True)
        theirs = gains.masked_fill(~taps.followed, LOWEST)
        near = theirs.amax(1, keepdim=True)
        as_good = (near > LOWEST) & (best - near <= taps.tie * largest)
        chosen = torch.where(as_good, theirs.argmax(1, keepdim=True), chosen)
        taken = (unit == unit.gather(1, chosen)) & (order == 0)
        order = torch.where(taken, float(steps - number), order)
        state = update(state, given, chosen)
    return order


def loop(
    step: Callable[..., list[Tensor]],
    carried: Sequence[Tensor],
    over: Tensor,
    given: Sequence[Tensor],
) -> Sequence[Tensor]:
    """Return what is carried after ``carried = step(*carried, over[n], *given)`` for each n.

    None of what a step returns may be one of its operands.  A step should ask for no free size: the
    tracer might read it off a stride, which ONNX cannot.  ``over`` must not have a free length that
    can be 1, which tracing would pin.  A counter is carried besides: Inductor (torch 2.13) unpacks
    the result of a loop that carries a single tensor twice.
    """

    def counting(done: Tensor, *values: Tensor) -> list[Tensor]:
        return [done + 1, *step(*values)]

    done = torch.zeros((), dtype=torch.int64, device=over.device)
    found: Sequence[Tensor] = torch.ops.higher_order.scan(
        counting, [done, *carried], [over], tuple(given)
    )
    return found[1:]


def unit_rows(taps: Taps) -> Tensor:
    """Return the rows of the stream scaled to length 1, fp32 ``[B, N, C]``.

    Where rows leave in groups every candidate is shown as the mean of its group.
    """
    shown = taps.hidden.float()
    if taps.group > 1:
        shown = torch.where(taps.candidates.unsqueeze(-1), group_means(taps, shown), shown)
    return normalised(shown)


def group_means(taps: Taps, rows: Tensor) -> Tensor:
    """Return at each candidate the mean of ``rows`` ``[B, N, C]`` over its group."""
    if taps.group == 1:
        return rows
    number = group_of(taps).clamp_min(0).unsqueeze(-1).expand(rows.shape)
    inside = rows.masked_fill(~taps.candidates.unsqueeze(-1), 0.0)
    sums = torch.zeros_like(rows).scatter_add(1, number, inside)
    return sums.gather(1, number) / taps.group


def products(rows: Tensor, row: Tensor) -> Tensor:
    """Return the products of one row ``[B, 1, C]`` with all ``[B, N, C]``, as ``[B, N]``."""
    return torch.bmm(row, rows.transpose(1, 2)).squeeze(1)
