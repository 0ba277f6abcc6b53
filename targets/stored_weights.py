"""Stored weights: where in an artifact's program file each weight lies.

Other files of the folder refer to the bytes there instead of holding them again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class StoredWeights:
    """``file``: its name in the folder; ``places``: bytes from its start, by storage and dtype.

    ``shared``: several programs of the folder have these weights, so even small models refer.
    Holds as long as the program that was saved lives.
    """

    file: str
    places: Mapping[tuple[int, torch.dtype], int]
    shared: bool = False

    def place(self, tensor: torch.Tensor) -> int | None:
        """Return where a tensor's bytes begin; None where they do not lie there in a row."""
        start = self.places.get((tensor.untyped_storage().data_ptr(), tensor.dtype))
        if start is None or not tensor.is_contiguous():
            return None
        return start + int(tensor.storage_offset()) * tensor.itemsize
