"""Order: an option that names visual tokens by their numbers, the most important first."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from tokopt.ir.errors import InputError

ORDER = "order"
"""The option; empty: there is no order."""


def ranking(options: Mapping[str, int | float | str], count: int, method: str) -> Tensor | None:
    """Return how far from the end of the order each of ``count`` tokens is, fp32 ``[count]``.

    None where there is no order.  Raises ``InputError`` where it is none of these tokens.
    """
    words = str(options.get(ORDER, "")).split()
    if not words:
        return None
    numbers = [int(word) if word.isdecimal() else -1 for word in words]
    if sorted(numbers) != list(range(count)):
        raise InputError(
            f"{method}: {ORDER} is no order of the {count} visual tokens",
            where=f"{len(words)} entries",
            expected=f"every number from 0 to {count - 1} once",
            hint="leave the option out: it is measured on the inputs",
        )
    value = torch.empty(count)
    value[numbers] = torch.arange(count, 0, -1.0)
    return value
