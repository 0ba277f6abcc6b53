"""Reuse: layers of a tower compute few rows anew and take the others from a reference call.

What a layer makes of a row is kept from the last *reference* call, in which all is computed: keys,
values, and what each sub-block adds to the stream.  In the calls between, keys are made of all
rows; those that changed most are computed anew, and they attend to all.  No row is dropped.
Shapes: B items, H heads, N rows, d head width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from tokopt.ir.errors import InputError
from tokopt.passes.rewrites.rewrite import checked_options

SHARE, EVERY = "share", "every"
"""The options of every such rewrite: the share of rows computed anew, and which call is a reference
(every so many)."""


@dataclass(frozen=True)
class Reuse:
    """One rewrite: its name is its file's name.

    ``changed`` says how much each row changed, fp32 ``[B, N]``, of a layer's keys now and those of
    the reference, ``[B, H, N, d]`` each.  ``options`` are ``share`` and ``every``; under
    ``neutral`` all rows are computed anew.  The rest is as in ``Rewrite``.
    """

    name: str
    paper: str
    roles: frozenset[str]
    changed: Callable[[Tensor, Tensor], Tensor]
    options: Mapping[str, int | float | str]
    notes: str
    first: int = 0
    needs: frozenset[str] = frozenset({"layers", "blocks"})
    licence: str = ""
    cost: str = ""

    @property
    def neutral(self) -> Mapping[str, int | float | str]:
        """Options under which every row is computed anew."""
        return {SHARE: 1.0}

    def settings(self, options: Mapping[str, int | float | str]) -> Mapping[str, int | float | str]:
        """Return all options.

        Raises ``InputError`` for one that is not known, of another type or out of range.
        """
        whole = checked_options(self.name, self.options, options)
        share, every = float(whole[SHARE]), float(whole[EVERY])
        if not 0 < share <= 1:
            raise InputError(f"{self.name}: share = {share:g}", expected="above 0, at most 1")
        if every < 1 or every != int(every):
            raise InputError(f"{self.name}: every = {every:g}", expected="a whole number from 1 on")
        return whole


def rows_anew(share: float, count: int) -> int:
    """Return how many of ``count`` rows are computed anew: the share, rounded down, at least 1."""
    return max(1, int(share * count + 1e-9))
