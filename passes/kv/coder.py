"""Coder: the program that codes rows which leave the window of a cache, a unit of them at a time.

One serves all layers whose caches are alike; a format that has constants of each layer has one for
each.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from tokopt.passes.kv.kept import Kept

UNITS = 2
"""Units that are traced with: any number of them at once is free."""


class _Coder(nn.Module):
    def __init__(self, kept: Kept, names: tuple[str, ...]) -> None:
        super().__init__()
        self.kept, self.names = kept, names
        for name, value in kept.constants.items():
            self.register_buffer(f"constant_{name}", value)

    def forward(self, rows: Tensor, salience: Tensor | None = None) -> dict[str, Tensor]:
        constants = {name: getattr(self, f"constant_{name}") for name in self.kept.constants}
        state = self.kept.block(rows, salience, constants)
        return {name: state[name] for name in self.names}


def coder_of(kept: Kept, cache: Tensor) -> tuple[ExportedProgram, tuple[str, ...]]:
    """Return the program ``rows [N, H, unit, D] -> tensors [N, H, n, ...]``, and their names.

    Those are the ones that grow: a pool may be a prompt's alone.

    A format that ``ranks`` takes the ``salience`` ``[N, H, unit]`` beside the rows.  ``cache`` is
    recorded rows ``[B, H, T, D]`` of the cache.
    """
    assert kept.windowed is not None
    shape = (UNITS, int(cache.shape[1]), kept.windowed.unit, int(cache.shape[3]))
    rows = kept.handed(torch.zeros(shape, dtype=cache.dtype))
    with torch.no_grad():
        given = {"rows": rows}
        if kept.windowed.ranks:
            given["salience"] = torch.zeros(shape[:3])
        state = kept.block(rows, given.get("salience"))
        names = tuple(name for name, value in state.items() if value.shape[2])
        free = {key: {0: Dim("units")} for key in given}
        exported = torch.export.export(
            _Coder(kept, names).eval(), (), given, dynamic_shapes=free, strict=False
        )
    return exported.run_decompositions({}), names
