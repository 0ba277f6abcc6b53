"""Elementwise operators: every dim passes through; operands broadcast from the right."""

from __future__ import annotations

from tokopt.ir.call import Call
from tokopt.ir.rules import rule

UNARY = """
abs acos alias alias_copy asin atan bitwise_not bucketize cast ceil celu clamp clamp_max clamp_min
clone contiguous cos cosh deg2rad detach detach_ dropout elu empty_like erf erfc exp exp2 expm1
fill floor frac full_like gelu hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu
lift_fresh_copy log log10 log1p log2 logical_not logit mish nan_to_num native_dropout neg
ones_like positive rand_like randn_like reciprocal relu relu6 round rsqrt selu sgn sigmoid sign
silu sin sinh softplus softsign sqrt square tan tanh to _to_copy trunc zeros_like
_assert_tensor_metadata feature_dropout alpha_dropout conj real imag hardshrink softshrink
threshold lift lift_fresh type_as __invert__
"""

BROADCAST = """
add sub rsub mul div true_divide floor_divide remainder fmod pow maximum minimum fmax fmin atan2
eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor
bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ where masked_fill lerp addcmul
addcdiv copy xlogy hypot copysign prelu polar complex heaviside logaddexp expand_as
__lshift__ __rshift__ _prelu_kernel
"""


@rule(*UNARY.split())
def unary(call: Call) -> None:
    """``out[i] = f(x[i])``; a second tensor operand (``type_as``) only lends its dtype."""
    for axes in call.outs:
        call.broadcast(call.tensors()[0], axes)


@rule(*BROADCAST.split())
def broadcasting(call: Call) -> None:
    """``out[i] = f(x[i], y[i], …)`` with size-1 dims stretched."""
    for operand in call.tensors():
        call.broadcast(operand, call.out)


@rule("view_as_real", "view_as_complex")
def complex_view(call: Call) -> None:
    """The last dim of real pairs appears or goes; the others pass."""
    operand = call.tensors()[0]
    for dim in range(min(len(call.dims(operand)), len(call.out))):
        call.link(operand, dim, dim)
