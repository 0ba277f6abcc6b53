"""Last row: the last row of each item that may read itself, told from an attention's mask.

A prompt shorter than its batch is padded, on either side.  No row may read padding, not even a
padded row itself; every real row reads itself.  So the last row that reads itself is the last
token of the prompt, wherever the padding is, and no input's name is asked.  A mask that is made
of sizes only knows of no padding: the last row is then the last of all.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from tokopt.ir.dims import Dims, is_factory, operator_name

FAINT = -100.0
"""An added mask below this is "may not be read": ``exp`` of it is 0 beside any other key."""


def reads_input_values(node: fx.Node, dims: Dims) -> bool:
    """Return whether a value depends on what is in some user input, not only on its sizes."""
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if node in seen or node in dims.learned or is_factory(node):
            continue
        seen.add(node)
        if node.op == "placeholder":
            return True
        if operator_name(node) != "aten::sym_size":
            waiting += node.all_input_nodes
    return False


def last_by_mask(mask: Tensor) -> Tensor:
    """Return the last row that a mask ``[…, Q or 1, N]`` lets read itself, int64 ``[…]``.

    bool (True: may be read) or float (added).  Where no row may, the last of all.
    """
    own = diagonal(mask)
    return _last(own if own.dtype == torch.bool else own > FAINT)


def last_by_probabilities(probabilities: Tensor) -> Tensor:
    """Return the last row that reads itself in some head of ``[B, H, N, N]``, int64 ``[B]``."""
    return _last((diagonal(probabilities) > 0).any(1))


def line(mask: Tensor, rows: Tensor) -> Tensor:
    """Return the line of query ``rows`` ``[…]`` of ``[…, Q or 1, N]``, as ``[…, 1, N]``."""
    if mask.shape[-2] == 1:
        return mask
    index = rows.unsqueeze(-1).unsqueeze(-1).expand([*mask.shape[:-2], 1, mask.shape[-1]])
    return mask.gather(-2, index)


def diagonal(matrix: Tensor) -> Tensor:
    """Return what ``[…, Q or 1, N]`` says of each row and itself, ``[…, N]``; Q is N."""
    if matrix.shape[-2] == 1:
        return matrix.squeeze(-2)
    numbers = torch.arange(matrix.shape[-1], device=matrix.device).unsqueeze(-1)
    return matrix.gather(-1, numbers.expand([*matrix.shape[:-1], 1])).squeeze(-1)


def _last(own: Tensor) -> Tensor:
    count = own.shape[-1]
    numbers = torch.arange(count, device=own.device).expand(own.shape)
    last = numbers.masked_fill(~own, -1).amax(-1)
    return torch.where(last < 0, last + count, last)
