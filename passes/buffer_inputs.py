"""Buffer inputs: what a program with buffers takes and gives where its normal form's caches grow.

It is what a gate compares the two on: rows that are not written hold other numbers than zeros.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from tokopt.ir.tensors import tensor_inputs
from tokopt.passes.buffer_writes import Write

UNWRITTEN = 100.0
"""What stands in rows that are not written yet: a mask must hide it."""


def grown_examples(draft: ExportedProgram, writes: Sequence[Write]) -> dict[str, Tensor] | None:
    """Return example inputs of the program that it becomes; None without those that it has."""
    if draft.example_inputs is None:
        return None
    leaves = [x for x in pytree.tree_leaves(draft.example_inputs) if isinstance(x, Tensor)]
    names = [tensor.name for tensor in tensor_inputs(draft)]
    if len(leaves) != len(names):
        return None
    found = dict(zip(names, leaves, strict=True))
    for write in writes:
        if write.slot is not None:
            rows, slot = found[write.base.name], found[write.slot.name]
            count = min(max(int(slot.flatten()[0]), 1), rows.shape[write.dim] - 1)
            found[write.base.name] = rows.narrow(write.dim, 0, count).contiguous()
    for write in writes:
        if write.slot is not None and found[write.slot.name].ndim < 2:
            items = len(found[write.base.name])  # a position for each, as tokens have
            slot = found[write.slot.name].reshape(1, 1).expand(items, 1)
            found[write.slot.name] = slot.contiguous()
    return found


def archived_inputs(
    archived: ExportedProgram, normal: ExportedProgram, given: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return what the archive's program is given where its normal form is given ``given``.

    Buffers hold the cache's rows and ``UNWRITTEN`` behind them; a place is their number.
    """
    own = {tensor.name: tensor.value for tensor in tensor_inputs(normal)}
    found, rows = dict[str, Tensor](), 0
    places = list[tuple[str, Tensor]]()
    for tensor in tensor_inputs(archived):
        value, have = tensor.value, given.get(tensor.name)
        if have is None and not value.is_floating_point():
            places.append((tensor.name, value))
            continue
        shape = [int(n) if isinstance(n, int) else None for n in value.shape]
        if have is not None and len(shape) == have.ndim:
            grown = [
                d
                for d, n in enumerate(own[tensor.name].shape)
                if isinstance(n, torch.SymInt) and shape[d] is not None
            ]
            if not grown:
                found[tensor.name] = have
                continue
            sizes = [
                have.shape[d] if n is None or d not in grown else n for d, n in enumerate(shape)
            ]
            buffer = have.new_full(sizes, UNWRITTEN)
            (dim,), rows = grown, have.shape[grown[0]]
            buffer.narrow(dim, 0, rows).copy_(have)
            found[tensor.name] = buffer
        elif have is not None:  # a position for each item, which is one for all
            found[tensor.name] = have.flatten()[:1].reshape([1] * value.ndim)
        else:  # a buffer that prefill writes from the first row on
            batch = next(iter(given.values())).shape[0]
            sizes = [batch if n is None else n for n in shape]
            found[tensor.name] = torch.full(sizes, UNWRITTEN, dtype=value.dtype)
    for name, value in places:
        found[name] = torch.full([1] * value.ndim, rows, dtype=value.dtype)
    return found


def in_common(wanted: Tensor, got: Tensor) -> Tensor:
    """Return the rows of an archived output that its normal form gives: the first ones."""
    for dim, size in enumerate(got.shape):
        wanted = wanted.narrow(dim, 0, size) if wanted.shape[dim] > size else wanted
    return wanted
