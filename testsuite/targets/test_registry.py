from __future__ import annotations

import pytest

from tokopt.ir.errors import InputError
from tokopt.targets import registry
from tokopt.targets.registry import default, find, targets


def test_every_target_is_found_under_its_name() -> None:
    names = [
        "aotinductor",
        "aotinductor-cuda",
        "aotinductor-cuda-plain",
        "eager",
        "eager-cuda",
        "mlir",
        "mlir-stablehlo",
        "mlir-tosa",
    ]
    names += ["onnxruntime-cpu", "onnxruntime-cuda", "torch-compile", "torch-compile-cuda"]
    assert list(targets()) == names and [find(n).name for n in names] == names


def test_an_unknown_target_is_an_input_error_that_lists_the_known() -> None:
    with pytest.raises(InputError, match="no target 'tensorrt'") as caught:
        find("tensorrt")
    assert "onnxruntime-cpu" in str(caught.value.expected)


@pytest.mark.parametrize("works", [True, False])
def test_cuda_is_the_default_exactly_where_it_works(
    works: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cuda:
        name = "onnxruntime-cuda"

        def available(self) -> str | None:
            return None if works else "no driver"

    known = {**targets(), "onnxruntime-cuda": Cuda()}
    monkeypatch.setattr(registry, "targets", lambda: known)
    assert default().name == ("onnxruntime-cuda" if works else "onnxruntime-cpu")
