"""Scaling: attention that is the layer's own, times a factor per row for some sets of keys.

With A the attention and m_p the sets, 0 or 1 per key, the new attention of a row is

    A'_j = A_j (1 + Σ_p f_p m_p(j))          f_p made of the row's masses  Σ_j A_j m_p(j)

so a row reads ``A V + Σ_p f_p A (m_p V)``: attention that is fused is asked again with other values
(sets for masses, masked values for sums), and no value has two dims of N rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.passes.methods.rows import several
from tokopt.passes.rewrites.attended import Attended


@dataclass(frozen=True)
class Scaling:
    """``sets(taps)`` returns fp32 ``[B, P, N]``; keys may be in several sets.

    ``factors(taps, masses)`` takes the masses ``[B, H, T, P]`` of the rows asked and returns those
    of the first ``scaled`` sets, ``[B, H, T, scaled]``; masses of the others only decide.
    """

    sets: Callable[[Attended], Tensor]
    factors: Callable[[Attended, Tensor], Tensor]
    scaled: int

    def attend(self, taps: Attended) -> Tensor:
        """Return the new attention of the rows asked, written out, ``[B, H, T, N]``."""
        sets, attention = self.sets(taps).unsqueeze(1), several(taps.layer, taps.at)
        factors = self.factors(taps, torch.matmul(attention, sets.transpose(2, 3)))
        return attention * (1 + torch.matmul(factors, sets[:, :, : self.scaled]))

    def asked(self, taps: Attended) -> tuple[Tensor, ...]:
        """Return other values to ask for, fp32 like the layer's ``[B, H or fewer, N, e]``.

        The sets come first, as features, as many values as it takes; then the scaled sets' values.
        """
        sets, value = self.sets(taps), taps.layer.value.float()
        width = value.shape[-1]
        spread = sets.transpose(1, 2).unsqueeze(1).expand(-1, value.shape[1], -1, -1)
        pieces = torch.split(spread, width, dim=-1)
        last = pieces[-1]
        padded = torch.nn.functional.pad(last, (0, width - last.shape[-1]))
        scaled = sets[:, : self.scaled].unbind(1)
        return (*pieces[:-1], padded, *(value * one[:, None, :, None] for one in scaled))

    def mixed(self, taps: Attended, own: Tensor, answers: tuple[Tensor, ...]) -> Tensor:
        """Return what rows read: their own ``[B, H, T, e]`` and the answers to ``asked``."""
        width = own.shape[-1]
        count = self.sets(taps).shape[1]
        pieces = -(-count // width)
        masses = torch.cat(answers[:pieces], dim=-1)[..., :count]
        factors = self.factors(taps, masses)
        found = own.float()
        for factor, sums in zip(factors.split(1, dim=-1), answers[pieces:], strict=True):
            found = found + factor * sums
        return found
