"""Reach: where each channel's values lie, in a way that no later position breaks.

A static scale is an interval around a centre.  RoPE turns a pair of channels, so what one channel
was seen to reach at short prompts says nothing of long ones; a pair's norm does.  Both channels of
a pair get it as their reach.  A centre is free to choose (in keys it shifts all logits of a query
alike, in values it is added behind attention), and where the angles per position are known a pair
has a better one: with z = k e^(ipθ), the mean c of k and the mean m of e^(ipθ) over all positions
there will be,  |z - cm| <= |k - c| + |c| |e^(ipθ) - m|.  It is taken where that is less.
Source: onnxruntime-genai's pair envelope (kv_cache_calibration.py); the centre is our derivation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.kv.samples import Samples


@dataclass(frozen=True)
class Reach:
    """``|value - centre| <= reach`` by channel, fp32 ``[1, H, 1, D]``; reach is above 0."""

    centre: Tensor
    reach: Tensor


def reach_of(samples: Samples, around_mean: bool = False) -> Reach:
    """Return centre and reach of each channel; ``InputError`` where a head was only zeros.

    The centre of a channel that does not turn is the middle of its range, or ``around_mean``, for
    codes that are finest near it.  A channel that was constant gets the mean reach of its head: it
    may move one day.
    """
    rows = samples.flat()
    low, high = rows.amin(1), rows.amax(1)
    centre = rows.mean(1) if around_mean else (low + high) / 2
    reach = torch.maximum(high - centre, centre - low)
    if samples.rotary is not None:
        first, second = samples.rotary.pairs(samples.width)
        middle, norm = _turned(samples, rows[..., first], rows[..., second])
        centre[:, first], centre[:, second] = middle.real.float(), middle.imag.float()
        reach[:, first] = reach[:, second] = norm.float()
    silent = reach <= 0
    moving = (reach.sum(1) / (~silent).sum(1).clamp(min=1)).unsqueeze(1).expand_as(reach)
    reach = torch.where(silent, moving, reach)
    if not bool((reach > 0).all()):
        raise InputError(
            "calibration saw a head whose rows are all the same: it has no scale",
            expected="inputs on which every head varies",
            hint="calibrate on more or other inputs",
        )
    return Reach(centre[None, :, None], reach[None, :, None])


def _turned(samples: Samples, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Return the centre of each pair, complex ``[H, pairs]``, and the reach around it."""
    seen = torch.complex(first.double(), second.double())
    reach = seen.abs().amax(1)
    angles, rotary = samples.turns(), samples.rotary
    if angles is None or rotary is None or rotary.frequencies is None or rotary.positions < 1:
        return torch.zeros_like(reach, dtype=seen.dtype), reach
    keys = seen * torch.polar(torch.ones_like(angles), -angles)
    mean = keys.mean(1)
    every = torch.arange(rotary.positions).double()[:, None] * rotary.frequencies.double()
    turns = torch.polar(torch.ones_like(every), every)
    middle = turns.mean(0)
    around = (keys - mean[:, None]).abs().amax(1) + mean.abs() * (turns - middle).abs().amax(0)
    return torch.where(around < reach, mean * middle, 0), torch.minimum(around, reach)
