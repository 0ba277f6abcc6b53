from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testsuite.targets.onnx.test_join_norms import Norm, Scaled
from torch import Tensor, nn
from torch.export import export

from tokopt.targets.lowerings.onnxruntime import OnnxRuntime
from tokopt.targets.onnx.fusions import Region
from tokopt.targets.registry import find

sdpa = nn.functional.scaled_dot_product_attention


def regions(module: nn.Module, inputs: dict[str, Tensor], folder: Path) -> list[Region]:
    target = find("onnxruntime-cpu")
    assert isinstance(target, OnnxRuntime)
    with torch.no_grad():
        target.lower(export(module, (), inputs).run_decompositions({}), folder)
    return target.runs(folder / "model.onnx").regions


class Fused(nn.Module):
    """Every kind that is one operator, beside a softmax that is of none."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scaled = nn.LayerNorm(16), Norm(torch.float32)

    def forward(self, x: Tensor, angles: Tensor) -> tuple[Tensor, Tensor]:
        repeated = torch.cat([angles, angles], -1)
        left, right = x[..., :8], x[..., 8:]
        turned = torch.cat([-right, left], -1)
        x = x * repeated.cos() + turned * repeated.sin()
        x = self.norm(x + sdpa(x, x, x).relu())
        return self.scaled(x).softmax(-1), x[:, 0, :, 0].topk(2).indices


def test_what_runs_as_one_operator_is_listed_with_it(tmp_path: Path) -> None:
    given = {"x": torch.randn(1, 2, 5, 16), "angles": torch.randn(1, 1, 5, 8)}
    found = regions(Fused(), given, tmp_path)
    assert [(one.kind, one.operator) for one in found if one.fused] == [
        ("attention", "Attention"),
        ("normalisation", "LayerNormalization"),
        ("normalisation", "RMSNormalization"),
        ("rotary", "RotaryEmbedding"),
        ("scoring", "TopK"),
    ]
    assert [(one.kind, one.why[:10]) for one in found if not one.fused] == [("skip", "kept apart")]
    assert all(one.node for one in found)


class WrittenOut(Scaled):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Attention whose weights are read too, and of three dims; a norm; a turn; scores."""
        weights = (x @ x.transpose(1, 2)).softmax(-1)
        left, right = x[..., :8], x[..., 8:]
        mass = (x[:, :1] @ x.transpose(1, 2)).softmax(-1)
        return {
            "read": weights @ x + weights.amax(-1, keepdim=True),
            "three": sdpa(x, x * 2, x),
            "norm": self.wide(x, dim=1),
            "turn": x * 2 + torch.cat([-right, left], -1) * 3,
            "picked": mass[:, 0].topk(2).indices,
        }


def test_what_is_written_out_is_listed_with_the_reason(tmp_path: Path) -> None:
    found = regions(WrittenOut(torch.float32), {"x": torch.randn(2, 5, 16)}, tmp_path)
    reasons = [(one.kind, one.why) for one in found if not one.fused]
    kinds = ["attention", "attention", "normalisation", "rotary", "scoring"]
    assert [kind for kind, _ in reasons] == kinds
    expected = ("ReduceMax too", "3 dims, where", "last dim", "3 dims, where", "no operator gives")
    told = sorted(why for kind, why in reasons if kind == "attention")
    ordered = [told[1], told[0], *(why for _, why in reasons[2:])]
    assert all(part in why for part, why in zip(expected, ordered, strict=True)), ordered


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_an_operator_the_runtime_takes_apart_is_listed_as_written_out(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return sdpa(x, x, x)

    (only,) = regions(Plain(), {"x": torch.randn(1, 2, 5, 16, dtype=dtype)}, tmp_path)
    # ONNX Runtime's CPU has a kernel of Attention for halves and none for doubles
    assert only.kind == "attention" and only.fused == (dtype is torch.float16)
