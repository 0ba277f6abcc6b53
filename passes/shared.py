"""Shared: let every image keep its share, by scores that are 1 at the best rows of each.

Rows are sorted by score, then by image: those of one image lie together, best first, at positions
that are known when compiling, since the number of rows of each image is.
"""

from __future__ import annotations

from itertools import accumulate

import torch
from torch import Tensor, fx

from tokopt.ir.facts import TokenStack
from tokopt.passes.numbering import visual_numbers
from tokopt.passes.operands import Operands
from tokopt.passes.quotas import shares
from tokopt.passes.stack_state import StackState
from tokopt.passes.workspace import Workspace


def share_scores(
    work: Workspace, stack: TokenStack, state: StackState, scores: fx.Node, keep: int, images: int
) -> fx.Node:
    """Insert fp32 ``[B, N]``: 1 at the ``keep`` visual rows that stay of all images, else 0.

    ``scores`` is fp32 ``[B, N]``.  A visual row that may not go (the last of a prompt) is the best
    of its image, so that counts stay what they are.
    """
    assert isinstance(stack.count, int)
    each, visual = stack.count // images, state.visual
    starts = accumulate(shares(visual, images), initial=0)
    taken = list(zip(starts, shares(keep, images), strict=False))
    operands = Operands()
    values, mask = operands.slot(scores), operands.maybe(state.mask)
    written, origin = operands.maybe(state.written), operands.maybe(state.origin)
    number = visual_numbers(operands, stack, state)

    def share(*given: Tensor) -> Tensor:
        score, candidates, shown = values(given), mask(given), written(given)
        rows = torch.arange(score.shape[1], device=score.device)
        if candidates is None:
            shown = (rows >= stack.protected) & (rows < stack.protected + visual)
            shown = candidates = shown.expand(score.shape)
        else:
            assert shown is not None
            now = origin(given)
            shown = shown if now is None else shown.gather(1, now)
        image = torch.where(shown, number(given, candidates) // each, images)
        score = torch.where(candidates, score.nan_to_num(nan=float("-inf")), float("inf"))
        best = torch.sort(score, dim=1, descending=True, stable=True)[1]
        best = best.gather(1, torch.sort(image.gather(1, best), dim=1, stable=True)[1])
        winners = torch.cat([best.narrow(1, start, count) for start, count in taken], dim=1)
        return torch.zeros_like(score).scatter(1, winners, 1.0)

    return work.splice(share, operands.nodes)
