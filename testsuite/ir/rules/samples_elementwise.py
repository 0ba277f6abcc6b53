"""Samples of ir/rules/elementwise.py."""

from __future__ import annotations

import torch
from testsuite.ir.rules.sample import Sample, call, real, rolled, truth, whole

aten = torch.ops.aten

UNARY = """
abs acos alias alias_copy asin atan ceil celu clone contiguous cos cosh deg2rad detach detach_ elu
erf erfc exp exp2 expm1 floor frac full gelu hardsigmoid hardswish hardtanh isfinite isinf isnan
leaky_relu lift lift_fresh lift_fresh_copy log log10 log1p log2 logical_not logit mish nan_to_num
neg ones_like positive reciprocal relu relu6 round rsqrt selu sgn sigmoid sign silu sin sinh
softplus sqrt square tan tanh _to_copy trunc zeros_like conj real hardshrink softshrink
"""

TWO = """
true_divide.Tensor floor_divide maximum minimum fmax fmin atan2 eq.Tensor ne.Tensor lt.Tensor
le.Tensor gt.Tensor ge.Tensor remainder.Tensor fmod.Tensor pow.Tensor_Tensor add.Tensor sub.Tensor
mul.Tensor div.Tensor rsub.Tensor copysign.Tensor heaviside hypot logaddexp xlogy.Tensor polar
complex copy logical_and logical_or logical_xor
"""

BITS = """
bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__
__lshift__ __rshift__
"""


def overload(name: str, default: str = "default") -> object:
    packet, _, which = name.partition(".")
    return getattr(getattr(aten, packet), which or default)


def samples() -> list[Sample]:
    unary = [call(overload(n), real(2, 3, 5)) for n in UNARY.split() if n != "full"]
    two = []
    for name in TWO.split():
        two.append(call(overload(name), real(2, 3, 5), real(2, 3, 5)))
        two.append(call(overload(name), real(2, 3, 5), real(3, 1)))
        if name != "copy":
            two.append(call(overload(name), real(5), real(2, 3, 1)))
    bits = [call(overload(n, "Tensor"), whole(2, 3, 5), whole(3, 1)) for n in BITS.split()]
    shared = real(3, 3)
    return [
        *unary,
        *two,
        *bits,
        call(aten.add.Tensor, shared, shared),
        call(aten.mul.Scalar, real(2, 3), 2.0),
        call(aten.pow.Scalar, 2.0, real(2, 3)),
        call(aten.bitwise_not.default, whole(2, 3)),
        call(aten.bucketize.Tensor, real(2, 3), torch.tensor([0.2, 0.5, 0.6, 0.7])),
        call(aten.clamp.default, real(2, 3), 0.3, 0.5),
        call(aten.clamp.Tensor, real(2, 3, 5), real(3, 1), real(5)),
        call(aten.clamp_max.Tensor, real(2, 3, 5), real(5)),
        call(aten.clamp_min.Tensor, real(2, 3, 5), real(2, 1, 1)),
        call(aten.clamp_min.default, real(2, 3), 0.4),
        call(aten.dropout.default, real(2, 3), 0.5, False),
        rolled(aten.dropout.default, real(2, 3), 0.5, True),
        call(aten.native_dropout.default, real(2, 3), 0.5, False),
        rolled(aten.native_dropout.default, real(2, 3), 0.5, True),
        call(aten.feature_dropout.default, real(2, 3, 4), 0.5, False),
        call(aten.alpha_dropout.default, real(2, 3), 0.5, False),
        rolled(aten.empty_like.default, real(2, 3)),
        rolled(aten.rand_like.default, real(2, 3)),
        rolled(aten.randn_like.default, real(2, 3)),
        call(aten.fill.Scalar, real(2, 3), 1.5),
        call(aten.fill.Tensor, real(2, 3), real()),
        call(aten.full_like.default, real(2, 3), 1.5),
        call(aten.imag.default, torch.complex(real(2, 3), real(2, 3))),
        call(aten.conj.default, torch.complex(real(2, 3), real(2, 3))),
        call(aten.threshold.default, real(2, 3), 0.5, 0.0),
        call(aten.to.dtype, real(2, 3), torch.float32),
        call(aten.to.other, real(2, 3), whole(5, 7)),
        call(aten.type_as.default, real(2, 3), whole(5, 7)),
        call(aten.type_as.default, real(2, 3), whole(2, 3)),
        call(aten._assert_tensor_metadata.default, real(2, 3), [2, 3]),
        call(aten.where.self, truth(2, 1, 5), real(3, 1), real(2, 3, 5)),
        call(aten.where.ScalarOther, truth(2, 3), real(2, 3), 0.0),
        call(aten.masked_fill.Scalar, real(2, 3, 5), truth(3, 1), 0.0),
        call(aten.masked_fill.Tensor, real(2, 3, 5), truth(5), real()),
        call(aten.lerp.Tensor, real(2, 3), real(2, 3), real(3)),
        call(aten.addcmul.default, real(2, 3), real(3), real(2, 1)),
        call(aten.addcdiv.default, real(2, 3), real(3), real(2, 1)),
        call(aten.prelu.default, real(2, 3, 5) - 0.5, real(3)),
        call(aten.prelu.default, real(2, 5, 5) - 0.5, real(5)),
        call(aten.prelu.default, real(2, 3, 5) - 0.5, real(1)),
        call(aten._prelu_kernel.default, real(2, 3, 5) - 0.5, real(1, 3, 1)),
        call(aten.expand_as.default, real(3, 1), real(2, 3, 5)),
        call(aten.view_as_real.default, torch.complex(real(3, 2), real(3, 2))),
        call(aten.view_as_complex.default, real(3, 5, 2)),
    ]
