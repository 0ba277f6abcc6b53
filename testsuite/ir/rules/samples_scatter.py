"""Samples of rules that write rows to run-time positions."""

from __future__ import annotations

import torch
from testsuite.ir.rules.sample import Sample, call, real, truth, whole

aten = torch.ops.aten


def samples() -> list[Sample]:
    at = torch.tensor([4, 0, 2])
    put = aten.index_put.default
    row = torch.tensor([[True, False, True, True], [False, True, True, False]])
    return [
        call(put, real(5, 4), [at], real(3, 4)),
        call(put, real(5, 4), [at], real(3, 1)),
        call(put, real(5, 4), [at], real(4), True),
        call(put, real(2, 5, 4), [None, at], real(2, 3, 4)),
        call(put, real(2, 5, 4), [torch.tensor([[0], [1]]), at], real(2, 3, 4)),
        call(put, real(2, 5, 4), [whole(3, below=2), None, whole(3, below=4)], real(3, 5)),
        call(put, real(2, 4, 3), [row], real(int(row.sum()), 3)),
        call(put, real(2, 4, 3), [row], real()),
        call(put, real(4, 4), [torch.tensor([1, 3, 0, 2])], real(4, 4)),
        call(aten._index_put_impl.default, real(5, 4), [at], real(3, 4)),
        call(aten._unsafe_index_put.default, real(5, 4), [at], real(3, 4)),
        call(aten.index_copy.default, real(2, 5, 4), 1, at, real(2, 3, 4)),
        call(aten.index_copy.default, real(3, 3), 0, torch.tensor([1, 2, 0]), real(3, 3)),
        call(aten.index_add.default, real(2, 5, 4), -2, at, real(2, 3, 4)),
        call(aten.index_fill.int_Scalar, real(2, 5, 4), 1, at, 0.0),
        call(aten.index_fill.int_Tensor, real(2, 5, 4), 1, at, real()),
        call(aten.index_reduce.default, real(2, 5, 4), 1, at, real(2, 3, 4), "prod"),
        call(aten.scatter.src, real(2, 5, 4), 1, torch.tensor([4, 0, 2])[None, :, None].expand(
            2, 3, 4).clone(), real(2, 3, 4)),
        call(aten.scatter.src, real(2, 5, 4), -2, torch.tensor([4, 0])[None, :, None].expand(
            2, 2, 3).clone(), real(2, 3, 4)),
        call(aten.scatter.value, real(2, 5, 4), 1, whole(2, 3, 4, below=5), 0.0),
        call(aten.scatter.reduce, real(2, 5), 1, whole(2, 3, below=5), real(2, 3), reduce="add"),
        call(aten.scatter_add.default, real(2, 5), 1, whole(2, 3, below=5), real(2, 3)),
        call(aten.scatter_reduce.two, real(2, 5), 1, whole(2, 3, below=5), real(2, 3), "sum"),
        call(aten.masked_scatter.default, real(2, 4, 3), row[..., None], real(8, 3)),
        call(aten.masked_scatter.default, real(2, 4, 3), row[..., None].expand(2, 4, 3).clone(),
             real(8, 3)),
        call(aten.masked_scatter.default, real(4, 3), truth(3), real(12)),
    ]  # fmt: skip
