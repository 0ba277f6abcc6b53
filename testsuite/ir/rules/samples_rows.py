"""Samples of rules that read ranges of rows, join rows and choose them."""

from __future__ import annotations

import torch
from testsuite.ir.rules.sample import Sample, call, real, truth, whole

aten = torch.ops.aten
END = 9223372036854775807


def ranges() -> list[Sample]:
    return [
        call(aten.slice.Tensor, real(2, 7, 5), 1, 2, 5),
        call(aten.slice.Tensor, real(2, 7, 5), -2, -3, END),
        call(aten.slice.Tensor, real(2, 7, 5), 1, 0, -1),
        call(aten.slice.Tensor, real(2, 7, 5), 1, 0, END),
        call(aten.slice.Tensor, real(2, 7, 5), 1, -20, 3),
        call(aten.slice.Tensor, real(2, 7, 5), 1, 3, 20),
        call(aten.slice.Tensor, real(2, 7, 5), 1, 4, 4),
        call(aten.slice.Tensor, real(2, 7, 5), 1, 1, END, 2),
        call(aten.slice.Tensor, real(2, 8, 5), 1, 1, END, 2),
        call(aten.slice.Tensor, real(2, 8, 5), 1, 0, 8, 4),
        call(aten.slice.Tensor, real(2, 8, 5), 1, 3, END, 2),
        call(aten.slice.Tensor, real(2, 7, 5), 1, 1, 2),
        call(aten.slice.Tensor, real(7)),
        call(aten.slice_copy.Tensor, real(2, 7, 5), 2, 1, 4),
        call(aten.narrow.default, real(2, 7, 5), -2, -3, 2),
        call(aten.narrow.Tensor, real(2, 7, 5), 1, torch.tensor(1), 3),
        call(aten.narrow_copy.default, real(2, 7, 5), 1, 0, 3),
        call(aten.select.int, real(2, 7, 5), 1, -2),
        call(aten.select.int, real(2, 7, 5), -1, 0),
        call(aten.select.int, real(3, 3), 0, 1),
        call(aten.select_copy.int, real(2, 7, 5), 0, 1),
        call(aten.split.Tensor, real(2, 7, 5), 3, 1),
        call(aten.split.Tensor, real(2, 6, 5), 3, -2),
        call(aten.split.Tensor, real(2, 7), 7, 1),
        call(aten.split.sizes, real(2, 7), [1, 4, 2], 1),
        call(aten.split_with_sizes.default, real(2, 7), [1, 0, 4, 2], -1),
        call(aten.split_copy.Tensor, real(7, 2), 4),
        call(aten.chunk.default, real(2, 7), 3, 1),
        call(aten.unsafe_split.Tensor, real(2, 7), 4, 1),
        call(aten.unsafe_chunk.default, real(2, 7), 2, -1),
        call(aten.tensor_split.sections, real(2, 7), 3, 1),
        call(aten.tensor_split.indices, real(2, 7), [2, 3], 1),
        call(aten.unbind.int, real(2, 3, 5), 1),
        call(aten.unbind_copy.int, real(2, 3, 5), -1),
        call(aten.slice_scatter.default, real(2, 7, 5), real(2, 3, 5), 1, 2, 5),
        call(aten.slice_scatter.default, real(2, 7, 5), real(2, 7, 5), 1),
        call(aten.select_scatter.default, real(2, 7, 5), real(2, 5), 1, 3),
        call(aten.select_scatter.default, real(3, 3), real(3), 0, 1),
    ]


def joins() -> list[Sample]:
    x = real(2, 3)
    return [
        call(aten.cat.default, [real(2, 1, 5), real(2, 3, 5), real(2, 4, 5)], 1),
        call(aten.cat.default, [real(3, 3), real(3, 3)], -1),
        call(aten.cat.default, [x, x], -2),
        call(aten.cat.default, [torch.empty(0, dtype=torch.float64), real(2, 3)], 1),
        call(aten.cat.default, [real(2, 3)]),
        call(aten.concat.default, [real(2, 3), real(4, 3)]),
        call(aten.concatenate.default, [real(2, 3), real(4, 3)]),
        call(aten.stack.default, [real(2, 3), real(2, 3)], 1),
        call(aten.stack.default, [x, x, real(2, 3)], -1),
        call(aten.meshgrid.default, [real(3), real(5)]),
        call(aten.meshgrid.indexing, [real(3), real(5), real(2)], indexing="xy"),
        call(aten.meshgrid.indexing, [real(3), real(5)], indexing="ij"),
        call(aten.meshgrid.default, [x[0], x[0]]),
        call(aten.meshgrid.default, [(same := real(3)), same]),
    ]


def lookups() -> list[Sample]:
    index, pick = aten.index.Tensor, torch.tensor([4, 0, 2, 2])
    return [
        call(index, real(5, 3), [pick]),
        call(index, real(2, 5, 3), [None, pick]),
        call(index, real(2, 5, 3), [None, whole(4, 6, below=5)]),
        call(index, real(2, 5, 3), [whole(4, below=2), None, whole(4, below=3)]),
        call(index, real(2, 5, 3), [None, whole(4, 1, below=5), whole(6, below=3)]),
        call(index, real(2, 5, 3), [torch.tensor([[0], [1]]), whole(2, 4, below=5)]),
        call(index, real(2, 5, 3), [torch.tensor(1), None, pick.clamp(max=2)]),
        call(index, real(2, 5, 3), [None, torch.tensor(1)]),
        call(index, real(2, 5, 3), [truth(2, 5)]),
        call(index, real(2, 5, 3), [None, torch.tensor([True, False, True, True, False])]),
        call(index, real(3, 3), [torch.tensor([2, 0, 1])]),
        call(aten._unsafe_index.Tensor, real(2, 5, 3), [None, pick, None]),
        call(aten.index_select.default, real(2, 5, 3), -2, pick),
        call(aten.index_select.default, real(3, 3), 0, torch.tensor([2, 0, 1])),
        call(aten.gather.default, real(2, 5, 3), 1, whole(2, 4, 3, below=5)),
        call(aten.gather.default, real(2, 5, 3), -2, whole(2, 4, 2, below=5)),
        call(aten.gather.default, real(3, 3), 0, whole(3, 3, below=3)),
        call(aten.take_along_dim.default, real(2, 5, 3), whole(2, 4, 3, below=5), 1),
        call(aten.take_along_dim.default, real(2, 5, 1), whole(1, 4, 3, below=5), -2),
        call(aten.take_along_dim.default, real(2, 5), whole(4, below=10)),
        call(aten.embedding.default, real(7, 5), whole(2, 3, below=7)),
        call(aten.one_hot.default, whole(2, 3, below=5), 5),
        call(aten.masked_select.default, real(2, 3), truth(3)),
        call(aten.nonzero.default, truth(2, 3)),
        call(aten.unique_consecutive.default, whole(7, below=3)),
        call(aten._unique2.default, whole(7, below=3)),
        call(aten.diff.default, real(2, 3, 5)),
        call(aten.diff.default, real(2, 3, 5), 1, 1, real(2, 2, 5), real(2, 1, 5)),
    ]


def sorts() -> list[Sample]:
    return [
        call(aten.sort.default, real(2, 3, 5)),
        call(aten.sort.stable, real(2, 3, 5), stable=True, dim=1, descending=True),
        call(aten.argsort.default, real(2, 3, 5), 1),
        call(aten.argsort.stable, real(2, 3, 5), stable=True, dim=-1),
        call(aten.topk.default, real(2, 3, 5), 2),
        call(aten.topk.default, real(2, 5, 3), 2, 1, True, False),
        call(aten.msort.default, real(4, 3, 5)),
        call(aten.kthvalue.default, real(2, 3, 5), 2),
        call(aten.kthvalue.default, real(2, 3, 3), 2, 1),
        call(aten.kthvalue.default, real(2, 3, 5), 2, 1, True),
    ]


def samples() -> list[Sample]:
    return [*ranges(), *joins(), *lookups(), *sorts()]
