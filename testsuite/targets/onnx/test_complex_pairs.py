from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testsuite.targets.onnx.running import agree
from torch import Tensor, nn

from tokopt.ir.errors import UnsupportedError
from tokopt.targets.onnx.complex_pairs import in_pairs


class Turned(nn.Module):
    """Rows turned by constant and by computed angles, as rotary embeddings are written."""

    def __init__(self) -> None:
        super().__init__()
        angles = torch.rand(5, 4) * 6
        self.register_buffer("turn", torch.polar(torch.ones_like(angles), angles))

    def forward(self, x: Tensor, places: Tensor) -> dict[str, Tensor]:
        rows = torch.view_as_complex(x.unflatten(-1, (4, 2)))
        turned = rows * self.turn[None]
        angles = places[..., None] * torch.arange(1, 5)
        there = turned * torch.polar(torch.ones_like(angles), angles) * 1.5
        first, rest = there.transpose(0, 1).split([2, 3])
        ratio = (first - 2.0) / (first.conj() + 3.0) + torch.complex(first.real, first.real)
        return {
            "turned": torch.view_as_real(
                torch.cat([rest, first]).index_select(1, places.long()[0])
            ),
            "imaginary": (ratio.exp() / 2).imag,
            "size": ratio.abs() + ratio.angle(),
        }


def test_complex_numbers_become_pairs(tmp_path: Path) -> None:
    inputs = {
        "x": torch.randn(2, 5, 8),
        "places": torch.tensor([[0.0, 1, 1, 0, 1], [1, 0, 2, 1, 0]]),
    }
    with torch.no_grad():
        exported = torch.export.export(Turned(), (), inputs).run_decompositions({})
    before = {name: value.clone() for name, value in exported.state_dict.items()}
    pairs = in_pairs(exported)
    assert in_pairs(pairs) is pairs
    for name, value in exported.state_dict.items():
        assert value.is_complex() and torch.equal(value, before[name]), "the given program changed"
    agree(Turned(), inputs, tmp_path)


class Through(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.fft(x).real


def test_a_complex_operator_without_a_form_is_named() -> None:
    with torch.no_grad():
        exported = torch.export.export(Through(), (torch.randn(3, 4),)).run_decompositions({})
    with pytest.raises(
        UnsupportedError, match=r"complex numbers in aten::fft_fft has no form in ONNX"
    ):
        in_pairs(exported)
