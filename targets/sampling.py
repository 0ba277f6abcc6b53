"""Sampling: the next token of every item from its logits, the likeliest or drawn."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokopt.ir.errors import InputError


@dataclass(frozen=True)
class Sampling:
    """``temperature`` 0 takes the likeliest (ties: the lower id); else tokens are drawn.

    Drawn from the fewest likeliest tokens whose probabilities sum to ``top_p`` at least (Holtzman
    et al. 2020), from logits divided by the temperature.  ``seed`` makes a run repeatable.
    Raises ``InputError`` for numbers out of range.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1):
            raise InputError(
                f"temperature {self.temperature} and top_p {self.top_p} choose no token",
                expected="a temperature from 0 and a top_p above 0, at most 1",
            )

    def source(self) -> torch.Generator:
        """Return the random numbers of one run."""
        return torch.Generator().manual_seed(self.seed)

    def choose(self, logits: Tensor, source: torch.Generator) -> Tensor:
        """Return int64 ``[B]`` from logits ``[B, V]``."""
        if self.temperature == 0:
            return logits.float().argmax(-1)
        chances = torch.softmax(logits.float() / self.temperature, -1)
        ranked, ids = chances.sort(dim=-1, descending=True, stable=True)
        before = ranked.cumsum(-1) - ranked
        drawn = torch.multinomial(ranked * (before < self.top_p), 1, generator=source)
        return ids.gather(-1, drawn).squeeze(-1)


GREEDY = Sampling()
