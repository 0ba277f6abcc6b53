"""Growing: caches with room behind their rows, where the next row is written without a copy.

What a run gives of a cache is the front of a buffer.  Given again as it is, the buffer is taken and
the new row written behind; whatever was handed out before keeps its values, for rows are only ever
put behind it.  A cache that is not the last one handed out of its buffer (an older one, a copy, a
prompt's) is copied into a buffer of its own.  A buffer is held by what was last handed out of it.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field

import torch
from torch import Tensor

ROWS = 2
LEAST, SHARE = 64, 8
"""Room in a new buffer: so many rows, or one for so many that it has."""


@dataclass
class Buffers:
    """The buffers of what was handed out and still is, by where they begin."""

    _last: dict[int, tuple[weakref.ref[Tensor], Tensor]] = field(default_factory=dict)

    def room_behind(self, rows: Tensor) -> Tensor:
        """Return a buffer that begins with ``rows`` and has room for one more."""
        place = rows.data_ptr()
        reference, buffer = self._last.get(place, (None, None))
        last = None if reference is None else reference()
        if buffer is not None and last is not None and _same(last, rows):
            if rows.shape[ROWS] < buffer.shape[ROWS]:
                del self._last[place]  # until it is handed out again
                return buffer
        count = rows.shape[ROWS]
        sizes = [*rows.shape[:ROWS], count + max(LEAST, count // SHARE), *rows.shape[ROWS + 1 :]]
        buffer = torch.empty(sizes, dtype=rows.dtype, device=rows.device)
        buffer[:, :, :count] = rows
        return buffer

    def hand_out(self, buffer: Tensor, count: int) -> Tensor:
        """Return the buffer's first ``count`` rows."""
        place, found = buffer.data_ptr(), buffer.narrow(ROWS, 0, count)

        def forget(gone: weakref.ref[Tensor]) -> None:
            if place in self._last and self._last[place][0] is gone:
                del self._last[place]

        self._last[place] = (weakref.ref(found, forget), buffer)
        return found


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and one.stride() == other.stride() and one.dtype == other.dtype
