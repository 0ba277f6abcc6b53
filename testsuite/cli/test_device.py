"""The device that latency is predicted of, beside a target that makes machine code."""

from __future__ import annotations

import pytest
import torch

from tokopt.cli.planner import device_for
from tokopt.ir.errors import InputError
from tokopt.targets.registry import find


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 9))


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    ("target", "device", "said"),
    [
        ("aotinductor-cuda", "sm_80", "machine code for sm_89, and the device sm_80 is sm_80"),
        ("aotinductor-cuda-plain", "h100", "the device h100 is sm_90"),
        ("aotinductor-cuda", "cpu", "is a CPU"),
        ("aotinductor", "l4", "machine code for this CPU, and the device l4 is sm_89"),
    ],
)
def test_machine_code_for_another_device_is_refused(target: str, device: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as caught:
        device_for(None, find(target), device)
    assert "onnxruntime-cuda" in str(caught.value)


@pytest.mark.usefixtures("ada")
@pytest.mark.parametrize(
    ("target", "device"),
    [
        ("aotinductor-cuda", "sm_89"),
        ("aotinductor-cuda", "rtx4090"),
        ("aotinductor", "cpu"),
        ("onnxruntime-cuda", "a100"),
        ("onnxruntime-cpu", "h100"),
        ("mlir", "sm_80"),
        ("torch-compile-cuda", "a100"),
    ],
)
def test_files_that_run_elsewhere_take_every_device(target: str, device: str) -> None:
    found = device_for(None, find(target), device)
    assert found is not None and device in (found.name, found.generation)
