"""Question: which rows of the merged sequence are the text that a method compares tokens with."""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.method import Taps


def question_rows(taps: Taps) -> Tensor:
    """Return the text behind the last visual token, bool ``[B, N]``; where there is none, all text.

    Which row is the prompt's last is known where attention was seen before the site; without it
    padding on the right counts as text.
    """
    number = torch.arange(taps.candidates.shape[1], device=taps.candidates.device)
    text = ~taps.candidates
    last = taps.layers[-1].last if taps.layers else None
    if last is not None:
        text = text & (number <= last.unsqueeze(1))
    newest = torch.where(taps.candidates, number, -1).amax(1, keepdim=True)
    behind = text & (number > newest)
    return behind | (text & ~behind.any(1, keepdim=True))
