from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testsuite.targets.onnx.running import agree
from torch import Tensor, nn

DRAWN = torch.Generator().manual_seed(0)


class Scaled(nn.Module):
    """A scale, and the part of a norm before it."""

    def __init__(self, dtype: torch.dtype, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(16, generator=DRAWN).to(dtype) + 0.5)
        self.epsilon = epsilon

    def wide(self, x: Tensor, dim: int = -1) -> Tensor:
        wide = x.float()
        return wide * torch.rsqrt(wide.pow(2).mean(dim, keepdim=True) + self.epsilon)


class Norm(Scaled):
    """As libraries write it: computed wide, cast back, then scaled."""

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * self.wide(x).to(x.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_written_out_norm_is_one_operator_that_computes_the_same(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    # small numbers, so that a wrong epsilon or one left out shows
    x = (torch.randn(2, 5, 16, generator=DRAWN) * 1e-2).to(dtype)
    kinds = agree(Norm(dtype, 1e-3), {"x": x}, tmp_path)
    assert kinds["RMSNormalization"] == 1
    assert not {"Pow", "ReduceMean", "Sqrt", "Reciprocal"} & set(kinds)


class Others(Scaled):
    """None of these is what the operator does."""

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        root = torch.rsqrt((y * y).mean(-1, keepdim=True) + self.epsilon)
        return {
            "another value's root": self.weight * (x * root),
            "a scale per row": self.wide(x * 2) * y[:, :1],
            "another dim": self.weight * self.wide(x * 3, dim=0),
            "a cube": self.weight * (x * torch.rsqrt(x.pow(4).mean(-1, keepdim=True) + 1)),
        }


def test_what_only_looks_like_a_norm_stays_written_out(tmp_path: Path) -> None:
    x, y = torch.randn(2, 5, 16, generator=DRAWN)
    assert agree(Others(torch.float32), {"x": x, "y": y}, tmp_path)["RMSNormalization"] == 0


def test_a_norm_whose_mean_is_read_too_keeps_the_mean(tmp_path: Path) -> None:
    class Both(Scaled):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            mean = x.pow(2).mean(-1, keepdim=True)
            return self.weight * (x * torch.rsqrt(mean + self.epsilon)), mean

    x = torch.randn(5, 16, generator=DRAWN)
    kinds = agree(Both(torch.float32), {"x": x}, tmp_path)
    assert (kinds["RMSNormalization"], kinds["ReduceMean"], kinds["Sqrt"]) == (1, 1, 0)
