"""Every rule against brute force: delete the rows, run the plain operator, compare what is left."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from testsuite.passes.oracle.semantics.one_call import Case, aten, check

B, H, N, D = 2, 3, 7, 5


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape)


def x() -> tuple[Any, ...]:
    return (rand(B, N, D),)


def scores() -> torch.Tensor:
    return rand(B, H, N, N)


ROW, PAIR = (1,), (2, 3)

POINTWISE = [
    Case("gelu", aten.gelu.default, x, {0: ROW}, ROW),
    Case("pow of 0 is 1 even for NaN", aten.pow.Tensor_Scalar, lambda: (*x(), 0), {0: ROW}, ROW),
    Case("add of a table", aten.add.Tensor, lambda: (*x(), rand(D)), {0: ROW}, ROW),
    Case("add of scores and bias", aten.add.Tensor, lambda: (scores(), rand(H, N, N)),
         {0: PAIR, 1: (1, 2)}, PAIR),
    Case("fmax drops NaN", aten.fmax.default, lambda: (*x(), *x()), {0: ROW, 1: ROW}, ROW),
    Case("maximum", aten.max.other, lambda: (*x(), *x()), {0: ROW, 1: ROW}, ROW),
    Case("nan_to_num", aten.nan_to_num.default, x, {0: ROW}, ROW),
    Case("comparison", aten.gt.Scalar, lambda: (*x(), 0.1), {0: ROW}, ROW),
    Case("not", aten.logical_not.default, lambda: (rand(B, N) > 0,), {0: ROW}, ROW),
    Case("cast to int", aten._to_copy.default, x, {0: ROW}, ROW, {"dtype": torch.int64}),
    Case("zeros_like", aten.zeros_like.default, x, {0: ROW}, ROW),
    Case("masked_fill", aten.masked_fill.Scalar,
         lambda: (scores(), torch.ones(N, N, dtype=torch.bool).triu(1), -1e30),
         {0: PAIR, 1: (0, 1)}, PAIR),
    Case("masked_fill by a mask of full length", aten.masked_fill.Scalar,
         lambda: (scores(), torch.ones(N, N, dtype=torch.bool).triu(1), -1e30), {0: PAIR}, PAIR,
         shorter=lambda a, alive: [a[0], a[1][alive][:, alive], a[2]]),
    Case("where against a constant of full length", aten.where.self,
         lambda: (torch.ones(N, N).tril() > 0, scores(), torch.full((N, N), -1e30)), {1: PAIR},
         PAIR, constants=(0, 2),
         shorter=lambda a, alive: [a[0][alive][:, alive], a[1], a[2][alive][:, alive]]),
    Case("where against a constant, the other way round", aten.where.self,
         lambda: (torch.ones(N, N).triu(1) > 0, torch.full((N, N), -1e30), scores()), {2: PAIR},
         PAIR, constants=(0, 1),
         shorter=lambda a, alive: [*(p[alive][:, alive] for p in a[:2]), a[2]]),
    Case("where by a computed condition", aten.where.self,
         lambda: (rand(B, N, 1) > 0, *x(), torch.zeros(())), {0: ROW, 1: ROW}, ROW, constants=(2,)),
    Case("dropout", aten.dropout.default, lambda: (*x(), 0.5, False), {0: ROW}, ROW),
    Case("batch_norm", aten.batch_norm.default,
         lambda: (rand(B, D, N), rand(D), rand(D), rand(D), rand(D).exp(), False, 0.1, 1e-5, False),
         {0: (2,)}, (2,)),
]  # fmt: skip

MOVEMENT = [
    Case("heads", aten.view.default, lambda: (rand(B, N, 6), [B, -1, 2, 3]), {0: ROW}, ROW),
    Case("permute", aten.permute.default, lambda: (*x(), [2, 0, 1]), {0: ROW}, (2,)),
    Case(
        "a mask is permuted too",
        aten.permute.default,
        lambda: (rand(B, N, D) > 0, [2, 0, 1]),
        {0: ROW},
        (2,),
    ),
    Case(
        "expand of a mask",
        aten.expand.default,
        lambda: (rand(B, N, 1) > 0, [B, -1, 4]),
        {0: ROW},
        ROW,
    ),
    Case("slice of features", aten.slice.Tensor, lambda: (*x(), 2, 1, 4), {0: ROW}, ROW),
    Case("split of features", aten.split.Tensor, lambda: (rand(B, N, 6), 2, 2), {0: ROW}, ROW),
    Case(
        "repeat of heads",
        aten.repeat_interleave.self_int,
        lambda: (rand(B, H, N, D), 2, 1),
        {0: (2,)},
        (2,),
    ),
]

JOINING = [
    Case("cat along features", aten.cat.default, lambda: ([*x(), *x()], -1), {0: ROW}, ROW),
    Case("cat of masks", aten.cat.default, lambda: ([rand(B, N) > 0, rand(B, N) > 0], 0), {0: ROW},
         ROW),
    Case("stack of layers", aten.stack.default, lambda: ([*x(), *x()], 1), {0: ROW}, (2,)),
    Case("pad", aten.constant_pad_nd.default, lambda: (*x(), [1, 2], 3.0), {0: ROW}, ROW),
    Case("pad of masks", aten.constant_pad_nd.default, lambda: (rand(B, N, D) > 0, [1, 2], 1),
         {0: ROW}, ROW),
]  # fmt: skip

REDUCTION = [
    Case(f"{name} over {what}", target, x, {0: ROW}, out, kwargs)
    for what, dim, keep, out in (
        ("tokens", 1, False, ()),
        ("tokens, dim kept", 1, True, ()),
        ("features", 2, False, ROW),
        ("features, dim kept", 2, True, ROW),
    )
    for name, target, kwargs in (
        ("mean", aten.mean.dim, {"dim": [dim], "keepdim": keep}),
        ("sum", aten.sum.dim_IntList, {"dim": [dim], "keepdim": keep}),
        ("amax", aten.amax.default, {"dim": [dim], "keepdim": keep}),
        ("amin", aten.amin.default, {"dim": [dim], "keepdim": keep}),
        ("prod", aten.prod.dim_int, {"dim": dim, "keepdim": keep}),
        ("logsumexp", aten.logsumexp.default, {"dim": [dim], "keepdim": keep}),
        ("var", aten.var.correction, {"dim": [dim], "correction": 1, "keepdim": keep}),
        ("std", aten.std.correction, {"dim": [dim], "correction": 0, "keepdim": keep}),
        ("var and mean", aten.var_mean.correction, {"dim": [dim], "keepdim": keep}),
        ("norm", aten.linalg_vector_norm.default, {"ord": 2, "dim": [dim], "keepdim": keep}),
    )
]
REDUCTION += [
    Case("mean over all", aten.mean.default, x, {0: ROW}, ()),
    Case("sum over items and tokens", aten.sum.dim_IntList, x, {0: ROW}, (), {"dim": [0, 1]}),
    Case("any over tokens", aten.any.dim, lambda: (rand(B, N) > 1,), {0: ROW}, (), {"dim": 1}),
    Case("all over tokens", aten.all.dim, lambda: (rand(B, N) > -1,), {0: ROW}, (), {"dim": 1}),
    Case("any over keys", aten.any.dim, lambda: (scores() > 1,), {0: PAIR}, (2,), {"dim": -1}),
    Case("softmax over keys", aten.softmax.int, lambda: (scores(), -1), {0: PAIR}, PAIR),
    Case("_softmax", aten._softmax.default, lambda: (scores(), -1, False), {0: PAIR}, PAIR),
    Case("log_softmax over features", aten.log_softmax.int, lambda: (*x(), -1), {0: ROW}, ROW),
]  # fmt: skip

WHOLE = [
    Case("layer_norm", aten.layer_norm.default, lambda: (*x(), [D], rand(D)), {0: ROW}, ROW),
    Case("rms_norm", aten.rms_norm.default, lambda: (*x(), [D], rand(D)), {0: ROW}, ROW),
    Case("native_layer_norm", aten.native_layer_norm.default,
         lambda: (*x(), [D], rand(D), rand(D), 1e-5), {0: ROW}, ROW),
    Case("argmax over features", aten.argmax.default, x, {0: ROW}, ROW, {"dim": -1}),
    Case("max over features", aten.max.dim, x, {0: ROW}, ROW, {"dim": -1}),
    Case("topk over features", aten.topk.default, lambda: (*x(), 2), {0: ROW}, ROW),
    Case("cumsum over features", aten.cumsum.default, lambda: (*x(), -1), {0: ROW}, ROW),
    Case("glu", aten.glu.default, lambda: (rand(B, N, 6), -1), {0: ROW}, ROW),
    Case("1-wide convolution", aten.conv1d.default,
         lambda: (rand(B, D, N), rand(4, D, 1), rand(4)), {0: (2,)}, (2,)),
]  # fmt: skip

CONTRACTION = [
    Case("linear", aten.linear.default, lambda: (*x(), rand(4, D), rand(4)), {0: ROW}, ROW),
    Case("queries times keys", aten.matmul.default, lambda: (rand(B, H, N, D), rand(B, H, D, N)),
         {0: (2,), 1: (3,)}, PAIR),
    Case("probabilities times values", aten.matmul.default, lambda: (scores(), rand(B, H, N, D)),
         {0: PAIR, 1: (2,)}, (2,)),
    Case("learned queries times keys", aten.matmul.default, lambda: (rand(4, D), rand(B, D, N)),
         {1: (2,)}, (2,)),
    Case("keys times values", aten.matmul.default, lambda: (rand(B, D, N), rand(B, N, D)),
         {0: (2,), 1: (1,)}, ()),
    Case("bmm", aten.bmm.default, lambda: (rand(B, N, N), rand(B, N, D)), {0: (1, 2), 1: ROW}, ROW),
    Case("baddbmm", aten.baddbmm.default, lambda: (rand(B, N, N), rand(B, N, D), rand(B, D, N)),
         {0: (1, 2), 1: (1,), 2: (2,)}, (1, 2), {"alpha": 0.3}),
    Case("addmm", aten.addmm.default, lambda: (rand(4), rand(N, D), rand(D, 4)), {1: (0,)}, (0,)),
    Case("matrix times vector", aten.mv.default, lambda: (rand(N, D), rand(D)), {0: (0,)}, (0,)),
    Case("a vector of weights times rows", aten.matmul.default, lambda: (rand(N), rand(N, D)),
         {0: (0,), 1: (0,)}, ()),
    Case("einsum of scores", aten.einsum.default,
         lambda: ("bqhd,bkhd->bhqk", [rand(B, N, H, D), rand(B, N, H, D)]), {1: ROW}, PAIR),
    Case("einsum of values", aten.einsum.default,
         lambda: ("bkq,bkd->bqd", [rand(B, N, N), rand(B, N, N)]), {1: (1, 2)}, (1, 2)),
    Case("einsum of a sum", aten.einsum.default, lambda: ("bnd->bd", [*x()]), {1: ROW}, ()),
    Case("outer", aten.outer.default, lambda: (rand(N), rand(D)), {0: (0,)}, (0,)),
]  # fmt: skip


def qkv(heads: int = H) -> tuple[torch.Tensor, ...]:
    return rand(B, H, N, D), rand(B, heads, N, D), rand(B, heads, N, 4)


def some_seen() -> torch.Tensor:
    return (rand(B, 1, N, N) > 0) | torch.eye(N, dtype=torch.bool)


SDPA, QKV = aten.scaled_dot_product_attention.default, {0: (2,), 1: (2,), 2: (2,)}
ATTENTION = [
    Case("attention", SDPA, qkv, QKV, (2,)),
    Case("attention with a scale", SDPA, qkv, QKV, (2,), {"scale": 0.3}),
    Case("causal attention", SDPA, qkv, QKV, (2,), {"is_causal": True}),
    Case("attention with a mask", SDPA, lambda: (*qkv(), some_seen()), QKV | {3: PAIR}, (2,)),
    Case("attention with a mask of full length", SDPA, lambda: (*qkv(), some_seen()), QKV, (2,),
         shorter=lambda a, alive: [*a[:3], a[3][:, :, alive][:, :, :, alive]]),
    Case("attention with a bias", SDPA, lambda: (*qkv(), rand(H, N, N)), QKV | {3: (1, 2)}, (2,)),
    Case("a query that sees nothing", SDPA, lambda: (*qkv(), rand(B, 1, N, N) > 9), QKV | {3: PAIR},
         (2,)),
    Case("a query that sees nothing, by -inf", SDPA,
         lambda: (*qkv(), torch.full((N, N), -torch.inf)), QKV | {3: (0, 1)}, (2,)),
    Case("grouped heads", SDPA, lambda: (rand(B, 4, N, D), *qkv(2)[1:]), QKV, (2,),
         {"enable_gqa": True}),
    Case("heads without batch", SDPA, lambda: tuple(rand(H, N, D) for _ in range(3)),
         {0: ROW, 1: ROW, 2: ROW}, ROW),
    Case("learned queries", SDPA, lambda: (rand(B, H, 2, D), *qkv()[1:]), {1: (2,), 2: (2,)}, ()),
]  # fmt: skip

EVERY = POINTWISE + MOVEMENT + JOINING + REDUCTION + WHOLE + CONTRACTION + ATTENTION


@pytest.mark.parametrize("case", EVERY, ids=str)
def test_what_stays_is_what_the_operator_gives_without_the_rows(case: Case) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        alive = torch.rand(N) < 0.6
        alive[seed % N], alive[(seed + 3) % N] = True, False
        alive[(seed + 1) % N] = True  # a variance needs two
        check(case, alive)
