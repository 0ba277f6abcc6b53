from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.targets.signature import TensorSpec, signature_of
from tokopt.targets.signature_file import read_signature, write_signature


class Model(nn.Module):
    def forward(self, x: Tensor, cache: list[Tensor], flag: bool) -> dict[str, object]:
        joined = torch.cat([cache[0], x], 1)
        return {"x": x * 2, "cache": [joined, None], "flag": flag}


@pytest.fixture(scope="module")
def exported() -> ExportedProgram:
    n, old, new = Dim("n", min=1, max=4), Dim("old", min=2), Dim("new", min=2, max=9)
    shapes = ({0: n, 1: new}, [{0: n, 1: old}], None)
    return export(Model(), (torch.randn(2, 3), [torch.randn(2, 5)], True), dynamic_shapes=shapes)


def test_sizes_are_named_after_the_inputs_that_have_them(exported: ExportedProgram) -> None:
    signature = signature_of(exported)
    assert signature.inputs == (
        TensorSpec("x", "float32", ("batch", "x_dim1")),
        TensorSpec("cache_0", "float32", ("batch", "cache_0_dim1")),
    )
    assert signature.ranges["batch"] == (1, 4) and signature.ranges["x_dim1"] == (2, 9)
    assert signature.ranges["cache_0_dim1"][1] is None


def test_outputs_are_named_by_their_structure_and_constants_are_left_out(
    exported: ExportedProgram,
) -> None:
    outputs = signature_of(exported).outputs
    assert [spec.name for spec in outputs] == ["output_x", "cache.0"]
    batch, total = outputs[1].shape
    assert batch == "batch" and set(str(total).split(" + ")) == {"cache_0_dim1", "x_dim1"}


def test_a_single_output_is_called_output() -> None:
    exported = export(nn.ReLU(), (torch.randn(2),))
    assert [spec.name for spec in signature_of(exported).outputs] == ["output"]


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", ""], ["a", "x"]])
def test_names_that_are_not_distinct_or_not_enough_are_refused(
    exported: ExportedProgram, names: list[str]
) -> None:
    with pytest.raises(InputError, match="output name"):
        signature_of(exported, names)


class Sized(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        return x + 1, x.shape[0]


def test_a_size_among_the_outputs_is_refused() -> None:
    exported = export(Sized(), (torch.randn(3),), dynamic_shapes={"x": {0: Dim("n")}})
    with pytest.raises(UnsupportedError, match="output 1 of the program is a size"):
        signature_of(exported)


def test_a_signature_survives_its_file(exported: ExportedProgram, tmp_path: Path) -> None:
    write_signature(signature_of(exported), tmp_path)
    assert read_signature(tmp_path) == signature_of(exported)
    with pytest.raises(InputError, match="cannot read the signature"):
        read_signature(tmp_path / "nowhere")
