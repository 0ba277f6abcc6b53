"""Stored: caches that a search chooses the bits of, and the step of decode that reads them.

What a prompt's last token is answered with does not depend on how the cache is stored; the token
behind it does.  So plans of a search that chooses bits are judged on both (``objective.py``): rows
that stages drop and bits that formats drop count in one distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from tokopt.ir.plan import Caching
from tokopt.passes.within import StoredRows

Cache = tuple[Caching, ...]
"""The format of every layer; empty: in full."""


class StoredChoices(Protocol):
    """How caches may be stored, and what decode answers on them."""

    @property
    def caches(self) -> Sequence[Cache]:
        """The choices, from most bits to fewest."""

    @property
    def usual(self) -> int:
        """The number of the one that published plans are judged in."""

    @property
    def taken(self) -> Sequence[int]:
        """Which of the program's outputs, by number, decode is handed."""

    def rows(self, cache: Cache) -> Sequence[StoredRows]:
        """Return how each layer of one of the caches is stored, as budgets count it."""

    def logits(self, batch: int, token: Tensor, handed: Sequence[Tensor], cache: Cache) -> Tensor:
        """Return decode's answer to ``token`` ``[B]`` behind the prompts of a batch, ``[B, V]``.

        ``handed``: what the program left it (``taken``); it is stored and read back.
        """
