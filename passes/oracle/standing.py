"""Standing: attention of the oracle's run over rows of which some stand for several.

Told apart from the rewriter's way, which adds logarithms to logits: here the original's attention
runs as it is, its weights are multiplied by how many rows a key stands for, and scaled back to sum
to 1.  Where they are hidden in a fused call, the values and a row of ones are multiplied instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.attention import Attention
from tokopt.ir.axis import Axis
from tokopt.ir.dims import Dims
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.layout import layout_of
from tokopt.passes.oracle.interpreter import Around, Call
from tokopt.passes.oracle.placed import PlacedStage


class Standing:
    """How many rows each row stands for, by stack, while the oracle runs.

    ``around`` says how the attentions behind stages that merge are called; ``weights`` holds, by
    attention node, the numbers it was called with, fp32 ``[B, N]`` over the rows of the original.
    """

    def __init__(self, placed: Sequence[PlacedStage], dims: Dims) -> None:
        self.dims = dims
        self.weights: dict[fx.Node, Tensor] = {}
        self._now: dict[str, tuple[Tensor, tuple[Axis, ...]]] = {}
        self.around: dict[fx.Node, Around] = {}
        for one in (one for one in placed if one.method.weigh is not None):
            for layer in one.stack.stack.layers[one.site.depth :]:
                for attention in layer.attention:
                    self.around[attention.node] = self._counting(one.stack.role, attention)

    def of(self, role: str) -> Tensor | None:
        """Return the numbers of a stack's rows, ``[B, N]``; None where no rows were merged."""
        return self._now[role][0] if role in self._now else None

    def put(self, role: str, sizes: Tensor, lead: tuple[Axis, ...]) -> None:
        """Set the numbers of a stack's rows; those of dropped rows are never read."""
        self._now[role] = sizes, lead

    def _counting(self, role: str, attention: Attention) -> Around:
        def around(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            sizes, lead = self._now[role]
            self.weights[attention.node] = sizes
            if not attention.fused:
                weights = call(args, kwargs)
                counted = weights * self._spread(attention.node, lead, weights, -1, sizes)
                return counted / _nonzero(counted.nansum(-1, keepdim=True))
            query, key, value, *rest = args
            times = self._spread(attention.value, lead, value, -2, sizes)
            ones = torch.where(value.isnan(), value, times)
            counted = call((query, key, value * times, *rest), kwargs)
            return counted / _nonzero(call((query, key, ones, *rest), kwargs))

        return around

    def _spread(
        self, node: fx.Node, lead: tuple[Axis, ...], value: Tensor, rows: int, sizes: Tensor
    ) -> Tensor:
        """Return numbers of rows, ``[B, N]``, at every entry of a value, by their dim ``rows``.

        Every entry is numbered, and the layout tells where the numbers go.
        """
        entries = torch.arange(value.numel(), device=value.device).reshape(value.shape)
        shown = layout_of(node, self.dims, lead, -2, -1).apply(entries)
        if shown.shape[0] != len(sizes) or shown.shape[rows] != sizes.shape[1]:
            raise UnsupportedError(f"the rows of {node.name} are not those that were merged")
        own = sizes[:, None, None, :] if rows == -1 else sizes[:, None, :, None]
        found = torch.empty(value.numel(), dtype=sizes.dtype, device=value.device)
        found[shown.reshape(-1)] = own.expand(shown.shape).reshape(-1)
        return found.reshape(value.shape)


def _nonzero(total: Tensor) -> Tensor:
    return torch.where(total == 0, 1.0, total)
