from __future__ import annotations

import numpy as np
import pytest
import torch

from tokopt.ir.errors import InputError
from tokopt.targets.input_check import checked_inputs
from tokopt.targets.signature import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(
        TensorSpec("ids", "int64", ("batch", "length")),
        TensorSpec("pixels", "float32", ("batch", 3, 4)),
        TensorSpec("rest", "float32", ("2*batch",)),
    ),
    outputs=(),
    ranges={"batch": (1, 8), "length": (2, None)},
)


def good() -> dict[str, object]:
    return {"pixels": np.zeros((2, 3, 4), "float32"), "ids": torch.zeros(2, 5, dtype=torch.int64),
            "rest": torch.zeros(4)}  # fmt: skip


def test_inputs_come_back_as_tensors_in_the_signatures_order() -> None:
    found = checked_inputs(good(), SIGNATURE)
    assert list(found) == ["ids", "pixels", "rest"]
    assert found["pixels"].shape == (2, 3, 4) and found["pixels"].dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "value", "given", "hint"),
    [
        ("pixels", torch.zeros(2, 3, 4).double(), "given float64 [2, 3, 4]", "does not change"),
        ("ids", np.zeros((2, 5), "int32"), "given int32 [2, 5]", "does not change"),
        ("pixels", torch.zeros(3, 4), "given float32 [3, 4]", None),
        ("pixels", torch.zeros(2, 3, 5), "given float32 [2, 3, 5]", None),
        ("pixels", torch.zeros(1, 3, 4), "given float32 [1, 3, 4]", "batch is 2 at axis 0"),
        ("ids", torch.zeros(9, 5, dtype=torch.int64), "given int64 [9, 5]", "from 1 to 8"),
        ("ids", torch.zeros(2, 1, dtype=torch.int64), "given int64 [2, 1]", "from 2 to any size"),
        ("ids", [[1, 2]], "a list", None),
        ("ids", np.array([["a", "b"]]), "a numpy array of <U1", None),
        ("ids", np.zeros((2, 5), ">i8"), "a numpy array of >i8", None),
    ],
)
def test_an_input_that_does_not_fit_is_named_with_what_was_given_and_expected(
    name: str, value: object, given: str, hint: str | None
) -> None:
    with pytest.raises(InputError, match=f"'{name}' does not fit") as caught:
        checked_inputs({**good(), name: value}, SIGNATURE)
    assert caught.value.where == given
    wanted = {"ids": "int64 [batch, length]", "pixels": "float32 [batch, 3, 4]"}
    assert caught.value.expected == wanted[name]
    assert hint is None or hint in str(caught.value.hint)


def test_a_read_only_array_is_taken_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    array = np.zeros((2, 3, 4), "float32")
    array.setflags(write=False)
    checked_inputs({**good(), "pixels": array}, SIGNATURE)
    assert not recwarn.list


def test_a_scalar_keeps_its_rank() -> None:
    signature = Signature((TensorSpec("t", "float32", ()),), (), {})
    assert checked_inputs({"t": np.array(1.0, "float32")}, signature)["t"].shape == ()
