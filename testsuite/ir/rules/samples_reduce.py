"""Samples of ir/rules/reduce.py."""

from __future__ import annotations

import torch
from testsuite.ir.rules.sample import Sample, call, real, truth, whole

aten = torch.ops.aten

LISTS = "mean.dim sum.dim_IntList amax amin var.correction std.correction nansum nanmean"
LISTS += " linalg_vector_norm var_mean.correction std_mean.correction count_nonzero.dim_IntList"
ONE = "prod.dim_int max.dim min.dim median.dim"
ALL = "mean sum prod max min median var std var_mean std_mean nansum nanmean amax amin aminmax"
ALL += " count_nonzero linalg_vector_norm argmax argmin"
TWICE = frozenset({"linalg_vector_norm"})


def overload(name: str) -> object:
    packet, _, which = name.partition(".")
    return getattr(getattr(aten, packet), which or "default")


def reductions() -> list[Sample]:
    found = []
    for name in LISTS.split():
        order = {"ord": 2} if name in TWICE else {}
        found.append(call(overload(name), real(2, 3, 5), dim=[1], **order))
        found.append(call(overload(name), real(2, 3, 5), dim=[-1, 0], **order))
        if "count" not in name:
            found.append(call(overload(name), real(2, 3, 5), dim=[-2], keepdim=True, **order))
    for name in ONE.split():
        found.append(call(overload(name), real(2, 3, 5), 1))
        found.append(call(overload(name), real(2, 3, 5), -1, True))
    found += [call(overload(name), real(2, 3)) for name in ALL.split()]
    shared = real(2, 3)
    return [
        *found,
        call(aten.sum.dim_IntList, real(2, 3), []),
        call(aten.sum.dim_IntList, real(2, 3), None, True),
        call(aten.any.default, truth(2, 3)),
        call(aten.any.dim, truth(2, 3), -1),
        call(aten.any.dims, truth(2, 3, 5), [0, 2], True),
        call(aten.all.default, truth(2, 3)),
        call(aten.all.dim, truth(2, 3, 5), 1, True),
        call(aten.norm.Scalar, real(2, 3)),
        call(aten.norm.ScalarOpt_dim, real(2, 3), 2, [1], True),
        call(aten.logsumexp.default, real(2, 3, 5), [1]),
        call(aten.logsumexp.default, real(2, 3, 5), [-1, 0], True),
        call(aten.aminmax.default, real(2, 3), dim=1),
        call(aten.max.other, real(2, 3, 5), real(3, 1)),
        call(aten.min.other, real(5), real(2, 3, 1)),
        call(aten.max.other, shared, shared),
        call(aten.argmax.default, real(2, 3, 5), 1),
        call(aten.argmin.default, real(2, 3, 5), -1, True),
    ]


def normalisations() -> list[Sample]:
    mean, spread = real(4), real(4)
    found = [
        call(getattr(aten, name).int, real(2, 3, 5), dim)
        for name in ("softmax", "log_softmax")
        for dim in (1, -1)
    ]
    norm = aten.native_batch_norm.default
    return [
        *found,
        call(aten._softmax.default, real(2, 3, 5), 0, False),
        call(aten._log_softmax.default, real(2, 3, 5), -2, False),
        call(aten._safe_softmax.default, real(2, 3, 5), -1),
        call(aten.layer_norm.default, real(2, 3, 5), [5], real(5), real(5)),
        call(aten.layer_norm.default, real(2, 3, 5), [3, 5]),
        call(aten.native_layer_norm.default, real(2, 3, 5), [5], real(5), real(5), 1e-5),
        call(aten.rms_norm.default, real(2, 3, 5), [5], real(5)),
        call(aten._fused_rms_norm.default, real(2, 3, 5), [5], real(5), 1e-5),
        call(aten.group_norm.default, real(2, 4, 3, 5), 2, real(4), real(4)),
        call(aten.native_group_norm.default, real(2, 4, 3), real(4), real(4), 2, 4, 3, 2, 1e-5),
        call(aten.instance_norm.default, real(2, 4, 3), real(4), real(4), None, None, True, 0.1,
             1e-5, False),
        call(aten.batch_norm.default, real(2, 4, 3), real(4), real(4), mean, spread, False, 0.1,
             1e-5, False),
        call(aten.batch_norm.default, real(2, 4, 4), real(4), real(4), mean, spread, False, 0.1,
             1e-5, False),
        call(aten.batch_norm.default, real(2, 4, 3), None, None, None, None, True, 0.1, 1e-5,
             False),
        call(norm, real(2, 4, 3), real(4), real(4), mean, spread, False, 0.1, 1e-5),
        call(norm, real(2, 4, 3), real(4), real(4), None, None, True, 0.1, 1e-5),
        call(aten._native_batch_norm_legit_no_training.default, real(2, 4, 3), real(4), real(4),
             mean, spread, 0.1, 1e-5),
        *[
            call(getattr(aten, name).default, real(2, 3, 5), dim)
            for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")
            for dim in (1, -1)
        ],
        call(aten.tril.default, real(2, 3, 5)),
        call(aten.triu.default, real(3, 3), 1),
        call(aten.glu.default, real(2, 3, 6)),
        call(aten.glu.default, real(2, 4, 5), -2),
        call(aten.count_nonzero.default, whole(2, 3, below=2)),
    ]  # fmt: skip


def samples() -> list[Sample]:
    return [*reductions(), *normalisations()]
