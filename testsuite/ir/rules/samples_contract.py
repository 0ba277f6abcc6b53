"""Samples of ir/rules/contract.py."""

from __future__ import annotations

import torch
from testsuite.ir.rules.sample import Sample, call, ordered, real, truth

aten = torch.ops.aten
sdpa = aten.scaled_dot_product_attention.default


def products() -> list[Sample]:
    square = real(4, 4)
    return [
        call(aten.linear.default, real(2, 3, 5), real(7, 5), real(7)),
        call(aten.linear.default, real(5), real(7, 5)),
        call(aten.linear.default, real(3, 5), real(5)),
        call(aten.linear.default, real(2, 5, 5), real(5, 5), real(5)),
        call(aten.addmm.default, real(7), real(3, 5), real(5, 7)),
        call(aten.addmm.default, real(3, 1), real(3, 5), real(5, 7)),
        call(aten.addbmm.default, real(3, 7), real(2, 3, 5), real(2, 5, 7)),
        call(aten.baddbmm.default, real(2, 3, 7), real(2, 3, 5), real(2, 5, 7)),
        call(aten.baddbmm.default, real(3, 1), real(2, 3, 5), real(2, 5, 7)),
        call(aten.addmv.default, real(3), real(3, 5), real(5)),
        call(aten.matmul.default, real(2, 3, 5), real(5, 7)),
        call(aten.matmul.default, real(3, 5), real(2, 5, 7)),
        call(aten.matmul.default, real(2, 1, 3, 5), real(4, 5, 7)),
        call(aten.matmul.default, real(2, 3, 5), real(5)),
        call(aten.matmul.default, real(5), real(2, 5, 7)),
        call(aten.matmul.default, real(5), real(5)),
        call(aten.matmul.default, real(4, 4), real(4, 4)),
        call(aten.matmul.default, square, square),
        call(aten.mm.default, real(3, 5), real(5, 7)),
        call(aten.bmm.default, real(2, 3, 5), real(2, 5, 7)),
        call(aten.bmm.default, real(3, 3, 3), real(3, 3, 3)),
        call(aten.mv.default, real(3, 5), real(5)),
        call(aten.dot.default, real(5), real(5)),
        call(aten.outer.default, real(3), real(5)),
        call(aten.ger.default, real(3), real(5)),
        call(aten.einsum.default, "bqhd,bkhd->bhqk", [real(2, 3, 5, 4), real(2, 7, 5, 4)]),
        call(aten.einsum.default, "ij , jk -> ik", [real(3, 5), real(5, 7)]),
        call(aten.einsum.default, "bnd->bd", [real(2, 3, 5)]),
        call(aten.einsum.default, "ii->i", [real(4, 4)]),
        call(aten.einsum.default, "i,j->", [real(3), real(5)]),
        call(aten.einsum.default, "ij,jk", [real(3, 5), real(5, 7)]),
        call(aten.einsum.default, "...d,de->...e", [real(2, 3, 5), real(5, 7)]),
    ]


def convolutions() -> list[Sample]:
    conv2d, conv = aten.conv2d.default, aten.convolution.default
    return [
        call(aten.conv1d.default, real(2, 3, 11), real(5, 3, 2), real(5)),
        call(aten.conv1d.default, real(2, 3, 11), real(5, 3, 1), real(5)),
        call(aten.conv1d.default, real(2, 3, 4), real(5, 3, 1), None, [2], [2]),  # length 4 again
        call(aten.conv1d.padding, real(2, 3, 7), real(5, 3, 1), None, [1], "same"),
        call(aten.conv1d.default, real(3, 11), real(5, 3, 2)),
        call(aten.conv1d.default, real(5, 11), real(5, 5, 1)),
        call(conv2d, real(2, 3, 8, 12), real(5, 3, 4, 4), real(5), [4, 4]),
        call(conv2d, real(2, 4, 4, 6), real(4, 2, 2, 3), real(4), [2, 3], [0, 0], [1, 1], 2),
        call(conv2d, real(2, 3, 5, 6), real(5, 3, 2, 2), None, [2, 2]),
        call(conv2d, real(2, 3, 4, 6), real(5, 3, 2, 2), None, [2, 2], [1, 1]),
        call(conv2d, real(2, 3, 7, 11), real(5, 3, 1, 1)),
        call(conv2d, real(2, 3, 7, 11), real(5, 3, 3, 1), None, [1, 1], [1, 0]),
        call(conv2d, real(2, 4, 7, 11), real(4, 1, 3, 3), None, [1, 1], [1, 1], [1, 1], 4),
        call(conv2d, real(2, 4, 7, 11), real(6, 2, 1, 1), real(6), [1, 1], [0, 0], [1, 1], 2),
        call(conv2d, real(3, 7, 11), real(5, 3, 1, 1)),
        call(conv2d, real(3, 7, 11), real(5, 3, 2, 2)),
        call(aten.conv3d.default, real(2, 3, 4, 6, 8), real(5, 3, 2, 2, 1), real(5), [2, 2, 1]),
        call(conv, real(2, 3, 7, 11), real(5, 3, 1, 1), None, [1, 1], [0, 0], [1, 1], False,
             [0, 0], 1),
        call(conv, real(2, 3, 7, 11), real(3, 5, 2, 2), real(5), [2, 2], [0, 0], [1, 1], True,
             [0, 0], 1),
        call(conv, real(2, 4, 7), real(4, 4, 1), None, [1], [0], [1], True, [0], 1),
        call(aten.conv_transpose1d.default, real(2, 3, 7), real(3, 5, 2), real(5), [2]),
        call(aten.conv_transpose1d.default, real(2, 4, 7), real(4, 4, 1)),
        call(aten.conv_transpose1d.default, real(2, 4, 7), real(4, 3, 1), real(6), [1], [0], [0],
             2),
        call(aten.conv_transpose2d.input, real(2, 3, 5, 7), real(3, 4, 2, 2), real(4), [2, 2]),
        call(aten.conv_transpose2d.input, real(3, 5, 7), real(3, 4, 1, 1)),
    ]  # fmt: skip


def attention() -> list[Sample]:
    q, k, v = real(2, 3, 5, 4), real(2, 3, 7, 4), real(2, 3, 7, 6)
    x = real(2, 3, 5, 5)
    return [
        call(sdpa, q, k, v),
        call(sdpa, x, x, x),
        call(sdpa, q[0], k[0], v[0]),
        call(sdpa, q[0, 0], k[0, 0], v[0, 0]),
        call(sdpa, q, k[:1], v[:, :1]),
        call(sdpa, q, k, v, real(2, 1, 5, 7)),
        call(sdpa, q, k, v, truth(5, 7)),
        call(sdpa, q, k, v, truth(2, 3, 1, 7)),
        call(sdpa, q, k, v, scale=0.3),
        ordered(sdpa, x, x, x, is_causal=True),
        ordered(sdpa, q, k, v, is_causal=True),
        call(sdpa, real(2, 6, 5, 4), k, v, enable_gqa=True),
    ]


def samples() -> list[Sample]:
    return [*products(), *convolutions(), *attention()]
