"""Elementwise operators: every dim passes through; operands broadcast from the right."""

from __future__ import annotations

from tokopt.ir.call import Call
from tokopt.ir.rules import rule

UNARY = """
abs acos alias alias_copy asin atan bitwise_not ceil celu
clone contiguous cos cosh deg2rad detach detach_ dropout elu empty_like erf erfc exp exp2 expm1
fill floor frac full_like gelu hardsigmoid hardswish hardtanh isfinite isinf isnan leaky_relu
lift_fresh_copy log log10 log1p log2 logical_not logit mish nan_to_num native_dropout neg
ones_like positive rand_like randn_like reciprocal relu relu6 round rsqrt selu sgn sigmoid sign
silu sin sinh softplus sqrt square tan tanh _to_copy trunc zeros_like
feature_dropout alpha_dropout conj real imag hardshrink softshrink
threshold lift lift_fresh
"""

BROADCAST = """
add sub rsub mul div true_divide floor_divide remainder fmod pow maximum minimum fmax fmin atan2
eq ne lt le gt ge logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor
bitwise_left_shift bitwise_right_shift __and__ __or__ __xor__ where masked_fill lerp addcmul
addcdiv copy xlogy hypot copysign polar complex heaviside logaddexp expand_as
__lshift__ __rshift__ _prelu_kernel clamp clamp_max clamp_min
"""


@rule(*UNARY.split())
def unary(call: Call) -> None:
    """``out[i] = f(x[i])``."""
    for axes in call.outs:
        call.broadcast(call.tensors()[0], axes)


@rule(*BROADCAST.split())
def broadcasting(call: Call) -> None:
    """``out[i] = f(x[i], y[i], …)`` with size-1 dims stretched."""
    for operand in call.tensors():
        call.broadcast(operand, call.out)


@rule("to", "type_as")
def cast(call: Call) -> None:
    """``out[i] = x[i]``; a second tensor only lends its dtype: none of its rows is read."""
    call.broadcast(call.get("self"), call.out)
    other = call.get("other")
    if call.is_tensor(other) and other is not call.get("self"):
        call.unread(other)


@rule("bucketize")
def bucketize(call: Call) -> None:
    """``out[i] = f(x[i], boundaries)``: the boundaries are read in order."""
    if call.is_tensor(call.get("self")):
        call.broadcast(call.get("self"), call.out)
    call.mix(call.get("boundaries"), 0, "is a list of boundaries in order")


@rule("prelu")
def prelu(call: Call) -> None:
    """Elementwise; a slope per channel belongs to dim 1."""
    x, slope = call.get("self"), call.get("weight")
    call.broadcast(x, call.out)
    if call.dims(slope):
        call.broadcast_one(slope, 0, call.out[min(1, len(call.out) - 1)])


@rule("view_as_real", "view_as_complex")
def complex_view(call: Call) -> None:
    """The last dim of real pairs appears or goes; the others pass."""
    operand = call.tensors()[0]
    for dim in range(min(len(call.dims(operand)), len(call.out))):
        call.link(operand, dim, dim)
    if len(call.dims(operand)) > len(call.out):
        call.mix(operand, len(call.out), "is a pair of a real and an imaginary part")
