"""Values that no operand's rows go into: factories, sizes, scalars, assertions."""

from __future__ import annotations

from tokopt.ir.axis import unify
from tokopt.ir.call import Call
from tokopt.ir.rules import rule

FACTORY = """
arange zeros ones full empty scalar_tensor linspace new_zeros new_ones new_full new_empty eye
rand randn empty_strided new_empty_strided empty_permuted tril_indices triu_indices
"""

FACTORIES = frozenset(f"aten::{name}" for name in FACTORY.split())
"""Operators whose output does not depend on any operand's data or shape."""


@rule(*FACTORY.split())
def factory(call: Call) -> None:
    """No operand's rows are read: a tensor operand only lends dtype and device."""


SCALARS = """
item _local_scalar_dense is_nonzero _is_all_true _is_any_true _assert_async _assert_scalar
_assert_tensor_metadata sym_constrain_range sym_constrain_range_for_size sym_size sym_numel
sym_storage_offset sym_stride
"""


@rule(*SCALARS.split())
def scalar(call: Call) -> None:
    """A scalar is read from a tensor, or a size."""
    for operand in call.tensors():
        for dim in range(len(call.dims(operand))):
            call.fold(operand, dim)


@rule("equal")
def equal(call: Call) -> None:
    """Two tensors are compared, row by row, into one truth."""
    scalar(call)
    for a, b in zip(call.dims(call.get("self")), call.dims(call.get("other")), strict=False):
        unify(a, b)
