"""Samples of pooling, resampling, factories and scalars."""

from __future__ import annotations

import torch
from testsuite.ir.rules.sample import Sample, call, real, rolled, truth, whole

aten = torch.ops.aten


def pools() -> list[Sample]:
    return [
        call(aten.avg_pool1d.default, real(2, 3, 8), [2]),
        call(aten.avg_pool1d.default, real(3, 8), [2]),
        call(aten.avg_pool2d.default, real(2, 3, 4, 6), [2, 2]),
        call(aten.avg_pool2d.default, real(3, 4, 6), [3, 3], [1, 1], [1, 1]),
        call(aten.avg_pool2d.default, real(2, 3, 4, 6), [3, 3], [1, 1], [1, 1]),
        call(aten.avg_pool3d.default, real(2, 3, 4, 6, 8), [2, 2, 2]),
        call(aten.max_pool1d.default, real(2, 3, 8), [2]),
        call(aten.max_pool2d.default, real(2, 3, 4, 6), [2, 2]),
        call(aten.max_pool2d_with_indices.default, real(2, 3, 4, 6), [2, 2]),
        call(aten.max_pool2d.default, real(2, 3, 4, 6), [2, 3], [2, 3]),
        call(aten.max_pool1d.default, real(2, 3, 7), [2], [2], [0], [1], True),
        call(aten.avg_pool1d.default, real(2, 3, 7), [2]),
        call(aten.adaptive_avg_pool1d.default, real(2, 3, 8), [4]),
        call(aten.adaptive_avg_pool1d.default, real(2, 3, 8), [3]),
        call(aten.adaptive_avg_pool1d.default, real(2, 3, 8), [1]),
        call(aten.adaptive_avg_pool2d.default, real(2, 3, 4, 6), [1, 1]),
        call(aten.adaptive_avg_pool2d.default, real(2, 3, 4, 6), [2, 3]),
        call(aten._adaptive_avg_pool2d.default, real(2, 3, 4, 6), [4, 3]),
        call(aten.adaptive_max_pool2d.default, real(3, 4, 6), [4, 3]),
        call(aten.upsample_nearest1d.default, real(2, 3, 4), [8]),
        call(aten.upsample_linear1d.default, real(2, 3, 4), [8], False),
        call(aten.upsample_nearest2d.vec, real(2, 3, 4, 6), [8, 6], None),
        call(aten.upsample_bilinear2d.vec, real(2, 3, 4, 6), [8, 12], False, None),
        call(aten.upsample_bicubic2d.vec, real(2, 3, 4, 6), None, False, [2.0, 2.0]),
        call(aten._upsample_bilinear2d_aa.default, real(2, 3, 4, 6), [2, 3], False),
        call(aten._upsample_bicubic2d_aa.default, real(2, 3, 4, 6), [2, 3], False),
        call(aten.im2col.default, real(2, 3, 4, 6), [2, 2], [1, 1], [0, 0], [2, 2]),
        call(aten.im2col.default, real(3, 4, 2), [2, 2], [1, 1], [0, 1], [2, 1]),
        call(aten.col2im.default, real(2, 12, 6), [4, 6], [2, 2], [1, 1], [0, 0], [2, 2]),
        call(aten.im2col.default, real(2, 3, 4, 6), [2, 3], [1, 1], [0, 0], [2, 3]),
        call(aten.im2col.default, real(3, 4, 6), [2, 3], [1, 1], [0, 0], [2, 3]),
        call(aten.im2col.default, real(2, 3, 4, 6), [2, 2], [2, 1], [0, 0], [2, 2]),
        call(aten.col2im.default, real(2, 12, 6), [4, 6], [2, 2], [1, 1], [0, 0], [2, 2]),
        call(aten.col2im.default, real(2, 12, 15), [4, 6], [2, 2], [1, 1], [0, 0], [1, 1]),
        call(aten.unfold.default, real(2, 9, 5), 1, 3, 3),
        call(aten.unfold.default, real(2, 7, 5), 1, 3, 2),
        call(aten.unfold.default, real(2, 7, 5), -1, 2, 2),
        call(aten.unfold.default, real(7, 3), 0, 1, 1),
        call(aten.pixel_shuffle.default, real(2, 8, 3, 5), 2),
        call(aten.pixel_shuffle.default, real(2, 3, 8, 3, 5), 2),
        call(aten.pixel_unshuffle.default, real(2, 3, 4, 6), 2),
        call(aten.grid_sampler.default, real(2, 3, 4, 6), real(2, 5, 7, 2), 0, 0, False),
        call(aten.grid_sampler_2d.default, real(2, 3, 4, 6), real(2, 4, 7, 2), 0, 0, True),
    ]


def factories() -> list[Sample]:
    like = real(3, 5)
    return [
        call(aten.arange.start_step, 1, 9, 2),
        call(aten.zeros.default, [2, 3]),
        call(aten.ones.default, [2, 3]),
        call(aten.full.default, [2, 3], 1.5),
        call(aten.empty.memory_format, [2, 3]),
        call(aten.scalar_tensor.default, 1.5),
        call(aten.linspace.default, 0, 1, 5),
        call(aten.linspace.Tensor_Tensor, real(), real(), 5),
        call(aten.new_zeros.default, like, [3, 5]),
        call(aten.new_ones.default, like, [3, 5]),
        call(aten.new_full.default, like, [3, 5], 1.5),
        rolled(aten.new_empty.default, like, [3, 5]),
        rolled(aten.new_empty_strided.default, like, [3, 5], [5, 1]),
        call(aten.eye.default, 3),
        call(aten.rand.default, [3]),
        call(aten.randn.default, [3]),
        call(aten.empty_strided.default, [2, 3], [3, 1]),
        call(aten.empty_permuted.default, [2, 3], [1, 0]),
        call(aten.tril_indices.default, 3, 4),
        call(aten.triu_indices.default, 3, 4),
    ]


def scalars() -> list[Sample]:
    one, x = real(1), real(2, 3)
    return [
        call(aten.item.default, one),
        call(aten._local_scalar_dense.default, one),
        call(aten.is_nonzero.default, one),
        call(aten.equal.default, x, x.clone()),
        call(aten.equal.default, x, x),
        call(aten._is_all_true.default, truth(2, 3)),
        call(aten._is_any_true.default, truth(2, 3)),
        call(aten._assert_async.default, torch.tensor(True)),
        call(aten._assert_async.msg, torch.tensor(True), "never"),
        call(aten._assert_scalar.default, True, "never"),
        call(aten.sym_constrain_range.default, 5, min=0, max=9),
        call(aten.sym_constrain_range_for_size.default, 5, min=0, max=9),
        call(aten.sym_size.int, whole(2, 3), 1),
        call(aten.sym_numel.default, whole(2, 3)),
        call(aten.sym_storage_offset.default, whole(2, 3)),
        call(aten.sym_stride.int, whole(2, 3), 0),
    ]


def samples() -> list[Sample]:
    return [*pools(), *factories(), *scalars()]
