"""Visual rows: which rows of a stream a stage is about, known at run time only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from tokopt.ir.axis import locate
from tokopt.ir.dims import Dims, describe, operator_name
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import TokenStack
from tokopt.ir.merge import Merge
from tokopt.passes.oracle.rows import StreamRows, stream_rows
from tokopt.passes.oracle.sizes import Sizes


def visual_rows(
    stack: TokenStack,
    rows: StreamRows,
    shape: tuple[int, int],
    dims: Dims,
    seen: Mapping[fx.Node, Any],
    sizes: Sizes,
) -> Tensor:
    """Return which rows are visual, bool ``[B, N]`` of ``shape``.

    Where images were merged into text: the rows the merge wrote.  Elsewhere: the rows of the token
    axis, which leaves out the learned rows in front.
    """
    if stack.merge is None:
        return rows.of_tokens(shape[1]).expand(shape)
    written = _written(stack.merge, stack, dims, seen, sizes)
    if tuple(written.shape) != shape:
        raise UnsupportedError(
            f"rows are merged into {tuple(written.shape)} rows, the stream has {shape}",
            where=describe(stack.merge.node),
        )
    return written


def _written(
    merge: Merge, stack: TokenStack, dims: Dims, seen: Mapping[fx.Node, Any], sizes: Sizes
) -> Tensor:
    """Return which rows a merge wrote, bool ``[B, N]``, from the value of its mask."""
    result = seen[merge.node]
    if merge.indices:
        mask = torch.zeros(result.shape, dtype=torch.bool)
        mask[tuple(seen[index] for index in merge.indices)] = True
    else:
        mask = seen[merge.mask]
        if operator_name(merge.node).endswith("index_put"):  # a mask over the leading dims
            mask = mask.reshape(*mask.shape, *[1] * (result.ndim - mask.ndim))
    axes = dims.axes[merge.node]
    dim = next(d for d, axis in enumerate(axes) if locate(axis, stack.stack.stream) is not None)
    rows = stream_rows(dims, merge.node, dim, stack.stack.stream, sizes)
    return rows.items(mask.expand(result.shape)).any(-1)
