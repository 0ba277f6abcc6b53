"""The table of translations: made once, a copy for each export, torch's own outside the block."""

from __future__ import annotations

import pytest
import torch
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


def test_after_the_block_torch_makes_its_own_again_whatever_happened_in_it() -> None:
    before = ONNXRegistry.__dict__["from_torchlib"]
    with pytest.raises(KeyError), torchlib_once():
        assert ONNXRegistry.__dict__["from_torchlib"] is not before
        raise KeyError
    assert ONNXRegistry.__dict__["from_torchlib"] is before
