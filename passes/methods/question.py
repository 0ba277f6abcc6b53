"""Question: which rows of the merged sequence are the text that a method compares tokens with."""

from __future__ import annotations

import torch
from torch import Tensor

from tokopt.passes.methods.method import Taps


def question_rows(taps: Taps, method: str) -> Tensor:
    """Return the text behind the last visual token, bool ``[B, N]``; where there is none, all text.

    Padding is no text.  Raises ``UnsupportedError`` where the stack has no prompt.
    """
    text = taps.want_text(method)
    number = torch.arange(text.shape[1], device=text.device)
    newest = torch.where(taps.candidates, number, -1).amax(1, keepdim=True)
    behind = text & (number > newest)
    return behind | (text & ~behind.any(1, keepdim=True))
