"""The exporter's table and signatures: made once, torch's own outside the block."""

from __future__ import annotations

from importlib import import_module

import onnx
import pytest
import torch
from onnx_ir.schemas import OpSignature
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tokopt.targets.onnx.operators import OPSET
from tokopt.targets.onnx.torchlib_once import torchlib_once

ADD = torch.ops.aten.add.Tensor


def table() -> ONNXRegistry:
    return ONNXRegistry().from_torchlib(opset_version=OPSET)


def test_a_copy_holds_the_very_translations_and_what_one_registers_does_not_reach_the_next() -> (
    None
):
    with torchlib_once():
        first, second = table(), table()
        first.register_op(ADD, lambda a, b: a)
        first.functions.clear()
        third = table()
    assert second.opset_version == OPSET and len(second.functions) > 100
    assert third.functions.keys() == second.functions.keys()
    for operator, found in second.functions.items():
        assert [id(f) for f in found] == [id(f) for f in third.functions[operator]], operator


def test_the_table_is_torchs_own() -> None:
    with torchlib_once():
        copied = table()
    own = table()
    assert own.opset_version == copied.opset_version
    assert list(own.functions) == list(copied.functions)
    for operator, found in own.functions.items():
        assert [f.onnx_function for f in found] == [
            f.onnx_function for f in copied.functions[operator]
        ]


def test_operators_that_came_after_the_first_table_was_made_are_in_the_next() -> None:
    with torchlib_once():
        table()
        import_module("torch.ao.quantization.fx._decomposed")

        later = table()
    assert later.functions.keys() == table().functions.keys()
    assert any("quantized_decomposed" in str(operator) for operator in later.functions)


def test_after_the_block_torch_makes_its_own_again_whatever_happened_in_it() -> None:
    def current() -> tuple[object, object]:
        return ONNXRegistry.__dict__["from_torchlib"], OpSignature.__dict__["from_op_schema"]

    before = current()
    with pytest.raises(KeyError), torchlib_once():
        assert all(a is not b for a, b in zip(current(), before, strict=True))
        raise KeyError
    assert all(a is b for a, b in zip(current(), before, strict=True))


def test_a_signature_is_that_of_its_version_and_comes_from_the_schema() -> None:
    schemas = [onnx.defs.get_schema("ReduceMax", version, "") for version in (11, 18)]
    own = [OpSignature.from_op_schema(schema) for schema in schemas]
    with torchlib_once():
        kept = [OpSignature.from_op_schema(schema) for schema in schemas]
        again = [OpSignature.from_op_schema(schema) for schema in schemas]
    assert str(own[0]) != str(own[1])
    assert [str(signature) for signature in kept] == [str(signature) for signature in own]
    assert all(a is b for a, b in zip(kept, again, strict=True))
