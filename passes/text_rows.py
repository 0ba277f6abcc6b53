"""Text rows: which rows of a sequence are text and no padding, told from the first layer.

A method that compares tokens with the prompt must not read padding.  As in ``last_row.py`` a real
row is one that may read itself.  The first layer's mask says it, also at a site in front of it: a
mask is made of inputs, not of the stream, so what computes it can be moved there.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tokopt.ir.axis import Axis
from tokopt.ir.dims import arguments_of
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.layout import layout_of
from tokopt.ir.sites import Site
from tokopt.passes.last_row import FAINT, diagonal
from tokopt.passes.taps import may_be_padded
from tokopt.passes.workspace import Workspace


def real_rows(
    work: Workspace, stack: TokenStack, site: Site, lead: tuple[Axis, ...]
) -> fx.Node | None:
    """Insert which rows of the first layer are real, bool ``[B or 1, N]``; None: all are.

    ``N`` counts the rows of that layer.  Raises ``UnsupportedError`` where that is only known
    behind the site.
    """
    layer = stack.stack.layers[0]
    attention = layer.attention[0]
    if not may_be_padded(attention, work.facts.dims):
        return None
    now = arguments_of(attention.node)["attn_mask"] if attention.fused else attention.node
    if not work.hoist(now, site.value):
        raise UnsupportedError(
            f"which rows are padding is only known behind {site.name}: the first layer's attention "
            "is written out",
            hint=f"place the stage behind the first layer, at {stack.role}:1",
        )
    layout = layout_of(now, work.facts.dims, lead, -2, -1)

    def real(given: Tensor) -> Tensor:
        own = diagonal(layout.apply(given))
        if not attention.fused:
            own = own > 0
        return (own if own.dtype == torch.bool else own > FAINT).any(1)

    return work.splice(real, [now])
