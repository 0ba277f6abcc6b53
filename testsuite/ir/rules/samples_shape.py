"""Samples of ir/rules/shape.py."""

from __future__ import annotations

import torch
from testsuite.ir.rules.sample import Sample, call, real

aten = torch.ops.aten

RESHAPES = "view reshape _unsafe_view view_copy"
CASES = [
    ((2, 12, 5), [2, 3, 4, 5]),
    ((2, 3, 4, 5), [2, 12, -1]),
    ((6, 10), [2, 30]),
    ((2, 1, 3), [1, 2, 3, 1]),
    ((4, 6), [6, 4]),
    ((12, 10), [2, 4, 15]),
    ((2, 6, 4), [2, 4, 6]),
    ((8, 9), [4, 18]),
    ((24,), [2, 3, 4]),
]


def views() -> list[Sample]:
    found = [
        call(getattr(aten, name).default, real(*shape), sizes)
        for name in RESHAPES.split()
        for shape, sizes in CASES
    ]
    return [
        *found,
        call(aten.view.dtype, real(2, 3), torch.int32),
        call(aten.view_copy.dtype, real(2, 3), torch.int64),
        call(aten._reshape_alias.default, real(2, 12), [2, 3, 4], [12, 4, 1]),
        call(aten.flatten.using_ints, real(2, 3, 4, 5), 1, -2),
        call(aten.flatten.using_ints, real(2, 3)),
        call(aten.unflatten.int, real(2, 12, 5), -2, [3, 4]),
        call(aten.unsqueeze.default, real(2, 3), -2),
        call(aten.unsqueeze_copy.default, real(2, 3), 0),
        call(aten.squeeze.default, real(2, 1, 3, 1)),
        call(aten.squeeze.dim, real(2, 1, 3), -2),
        call(aten.squeeze.dim, real(2, 1, 3), 2),
        call(aten.squeeze.dims, real(1, 2, 1, 3), [0, -2]),
        call(aten.squeeze_copy.dim, real(2, 1, 3), 1),
        call(aten.view_as.default, real(2, 12), real(2, 3, 4)),
        call(aten.view_as.default, real(2, 12), real(6, 4)),
        call(aten.reshape_as.default, real(2, 12), real(2, 3, 4)),
        call(aten.expand.default, real(3, 1), [2, -1, 5]),
        call(aten.expand_copy.default, real(1, 3, 1), [2, 3, 5]),
        call(aten.broadcast_to.default, real(3, 1), [2, 3, 5]),
    ]


def orders() -> list[Sample]:
    return [
        call(aten.permute.default, real(2, 3, 5), [2, 0, 1]),
        call(aten.permute.default, real(3, 3, 3), [-1, 0, -2]),
        call(aten.permute_copy.default, real(2, 3, 5), [1, 2, 0]),
        call(aten.transpose.int, real(2, 3, 5), 0, -1),
        call(aten.transpose.int, real(4, 4, 4), 1, 2),
        call(aten.transpose_copy.int, real(2, 3, 5), -1, -2),
        call(aten.swapaxes.default, real(2, 3, 5), 0, 2),
        call(aten.t.default, real(2, 3)),
        call(aten.t.default, real(3)),
        call(aten.t_copy.default, real(2, 3)),
        call(aten.mT.default, real(2, 3, 5)),
        call(aten.numpy_T.default, real(2, 3, 5)),
        call(aten.numpy_T.default, real(3, 3, 3)),
        call(aten.adjoint.default, real(2, 3, 5)),
        call(aten.movedim.int, real(2, 3, 5), 0, -1),
        call(aten.movedim.intlist, real(2, 3, 5, 4), [0, 1], [-1, 0]),
        call(aten.moveaxis.int, real(2, 3, 5), -1, 0),
        call(aten.roll.default, real(2, 3, 5), [1], [1]),
        call(aten.roll.default, real(2, 3, 5), [1, 2], [-1, 0]),
        call(aten.roll.default, real(2, 3), [1]),
        call(aten.flip.default, real(2, 3, 5), [-1]),
        call(aten.rot90.default, real(2, 3, 5)),
        call(aten.rot90.default, real(2, 3, 5), 2, [1, 2]),
        call(aten.rot90.default, real(3, 3, 5), -1, [0, -1]),
        call(aten.rot90.default, real(2, 3, 5), 0, [0, 1]),
    ]


def repeats() -> list[Sample]:
    return [
        call(aten.repeat.default, real(3, 5), [2, 1, 4]),
        call(aten.repeat.default, real(3, 1), [3, 4]),
        call(aten.tile.default, real(2, 3, 5), [2]),
        call(aten.tile.default, real(3), [2, 4]),
        call(aten.repeat_interleave.self_int, real(2, 3, 5), 4, 1),
        call(aten.repeat_interleave.self_int, real(3, 3), 3, -1),
        call(aten.repeat_interleave.self_int, real(2, 3), 2),
        call(aten.repeat_interleave.self_int, real(3), 2, 0),
        call(aten.repeat_interleave.self_Tensor, real(2, 3), torch.tensor([2, 0, 1]), 1),
        call(aten.repeat_interleave.Tensor, torch.tensor([2, 0, 1, 1])),
        call(aten.constant_pad_nd.default, real(2, 3, 5), [1, 2]),
        call(aten.constant_pad_nd.default, real(2, 3, 5), [0, 0, 2, 2], 1.0),
        call(aten.constant_pad_nd.default, real(2, 3, 5), [0, 1, 3, 0, 0, 0]),
        call(aten.constant_pad_nd.default, real(2, 3, 5), [-1, 0]),
        call(aten.constant_pad_nd.default, real(2, 3, 5), [-1, 1]),
        call(aten.pad.default, real(2, 3, 5), [1, 1]),
        call(aten.pad.default, real(2, 3, 5), [1, 2], "reflect"),
        call(aten.pad.default, real(2, 3, 5), [1, 2], "replicate"),
    ]


def samples() -> list[Sample]:
    return [*views(), *orders(), *repeats()]
