"""Pointwise operators: an entry of the result is dead where an entry it is computed from is.

This holds whatever the arithmetic says of NaN (``pow(x, 0)``, ``fmax``, comparisons, casts to
integers), so the mark is set again on the result.  Which operators are pointwise is torch's own
tag; the names here are those torch does not tag.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tokopt.passes.oracle.dead import bare, bury, dead_entries, either
from tokopt.passes.oracle.operation import Operation
from tokopt.passes.oracle.semantics.table import rule

UNTAGGED = """
add masked_fill polar complex floor_divide hardswish bitwise_left_shift bitwise_right_shift
__and__ __or__ __xor__ __lshift__ __rshift__ logical_and logical_or logical_xor xlogy _prelu_kernel
prelu lerp fake_quantize_per_tensor_affine
"""


@rule(*UNTAGGED.split())
def pointwise(call: Operation) -> Any:
    """Broadcast all operands; any dead entry makes a dead entry.

    ``masked_fill`` included: a dropped key stays absent where a mask hides it as well.
    """
    return bury(call.run(), either(*(dead_entries(value) for value in call.given.values())))


FIRST = """
_to_copy to clone contiguous detach alias lift_fresh_copy dropout native_dropout feature_dropout
alpha_dropout type_as zeros_like ones_like full_like empty_like rand_like randn_like bucketize
tril triu batch_norm _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm
"""


@rule(*FIRST.split())
def first(call: Operation) -> Any:
    """Only the first operand has rows; others lend a dtype, a shape or constants.

    ``zeros_like`` included: what is like a shortened tensor is shortened.  Inference statistics of
    a batch norm are constants; outputs of another shape are its saved statistics.
    """
    dead = call.dead(call.main)
    result = call.run()
    if isinstance(result, (list, tuple)):
        return tuple(
            bury(part, dead) if dead is not None and part.shape == dead.shape else part
            for part in result
        )
    return bury(result, dead)


@rule("copy")
def copy(call: Operation) -> Any:
    """Take the values from ``src`` alone."""
    return bury(call.run(), call.dead("src"))


@rule("where")
def where(call: Operation) -> Any:
    """Go by the chosen operand, unless it is a constant.

    Merging visual rows into text chooses between two streams, and what the other one holds at a
    position is of no account.  Masking chooses between a value and a constant (``-inf``, 0) that
    was written at full length: where the value's entry is absent there is no entry at all.
    """
    chosen = bare(call.get("condition"))
    one, other = call.dead("self"), call.dead("other")
    none = torch.zeros((), dtype=torch.bool, device=chosen.device)
    a, b = (none if m is None else m for m in (one, other))
    from_one = a | b if "self" in call.constant else a
    from_other = a | b if "other" in call.constant else b
    dead: Tensor = torch.where(chosen, from_one, from_other)
    return bury(call.run(), either(dead, call.dead("condition")))
