"""Stream view: a stream's value seen as ``[B, N, C]`` whatever its layout, and put back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from tokopt.ir.axis import locate
from tokopt.ir.facts import TokenStack
from tokopt.ir.lengths import is_one
from tokopt.ir.sites import Site
from tokopt.passes.stack_state import StackState
from tokopt.passes.workspace import Workspace


@dataclass(frozen=True)
class StreamView:
    """A value with rows along ``dim`` and features along ``features``; other dims count items.

    ``rows``: where ``dim`` holds the rows of several items one after the other, how many each has.
    """

    dim: int
    features: int
    rows: int | None = None

    def see(self, value: Tensor) -> Tensor:
        """Return a value as ``[B, N, C]``, items in the order of its dims."""
        moved = value.movedim((self.dim, self.features), (-2, -1))
        if self.rows is not None:
            moved = moved.unflatten(-2, (-1, self.rows))
        items = moved.dim() - 2
        if items == 0:
            return moved.unsqueeze(0)
        return moved if items == 1 else moved.flatten(0, items - 1)

    def put(self, seen: Tensor, like: Tensor) -> Tensor:
        """Return ``[B, K, C]`` laid out as ``like``, of which ``see`` has the same items."""
        lead = [s for d, s in enumerate(like.shape) if d not in (self.dim, self.features)]
        moved = seen.reshape([*lead, -1, seen.shape[-1]])
        return moved.movedim((-2, -1), (self.dim, self.features))


def stream_view(work: Workspace, stack: TokenStack, site: Site, state: StackState) -> StreamView:
    """Return how to see the stream at a site as ``[B, N, C]``, and back."""
    axes = work.axes[site.value]
    features = max(d for d in range(len(axes)) if d != site.dim)
    rows = None
    place = locate(axes[site.dim], site.tokens)
    for kind, children, index in place.path if place is not None else ():
        if kind == "*" and any(not is_one(child.root.length) for child in children[:index]):
            rows = stack.protected + state.visual  # flattened: items and rows share a dim
    return StreamView(site.dim, features, rows)
