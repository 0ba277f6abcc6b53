"""Coder: the program that codes rows which leave the window of a cache, a unit of them at a time.

One serves all layers whose caches are alike: a format that has constants of each layer would need
one for each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tokopt.ir.errors import UnsupportedError
from tokopt.passes.kv.kept import Kept

UNITS = 2
"""Units that are traced with: any number of them at once is free."""


class _Coder(nn.Module):
    def __init__(self, kept: Kept) -> None:
        super().__init__()
        self.kept = kept

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        return self.kept.block(rows)


def coder_of(kept: Kept, cache: Tensor) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Return the program ``rows [N, H, unit, D] -> tensors [N, H, 1, ...]``, and their names.

    ``cache`` is recorded rows ``[B, H, T, D]`` of the cache.  Raises ``UnsupportedError`` for a
    format whose codes depend on more than the rows.
    """
    assert kept.windowed is not None
    if kept.constants or kept.format.pooled:
        raise UnsupportedError(
            f"{kept.format.name} codes rows by what it measured of each layer, or by what attention"
            " gave them, and programs hand on rows alone",
            hint="docs/kv.md says which formats programs use",
        )
    shape = (UNITS, int(cache.shape[1]), kept.windowed.unit, int(cache.shape[3]))
    rows = kept.handed(torch.zeros(shape, dtype=cache.dtype))
    with torch.no_grad():
        names = tuple(kept.block(rows))
        exported = torch.export.export(
            _Coder(kept).eval(), (rows,), dynamic_shapes={"rows": {0: Dim("units")}}, strict=False
        )
    return exported.run_decompositions({}), names
