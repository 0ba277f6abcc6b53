from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testsuite.targets.onnx.running import agree
from torch import Tensor, nn


class Whole(nn.Module):
    """Rows by index: of a batch, of heads too, scattered, added, from a narrower batch."""

    def forward(self, x: Tensor, heads: Tensor, index: Tensor) -> dict[str, Tensor]:
        wide = index.unsqueeze(-1).expand(-1, -1, x.shape[2])
        rows = x.gather(1, wide)
        per_head = index[:, None, :, None].expand(-1, heads.shape[1], -1, heads.shape[3])
        return {
            "gather": rows,
            "gather from the end": x.gather(-2, wide),
            "gather in heads": heads.gather(2, per_head),
            "scatter": torch.zeros(x.shape[0], 9, x.shape[2]).scatter(1, wide, rows),
            "scatter_add": x.scatter_add(
                1, torch.zeros_like(index[:, :, None]).expand_as(rows), rows
            ),
            "scatter in heads": heads.scatter(2, per_head, heads[:, :, :3] * 2),
        }


class Elements(nn.Module):
    """What only looks like rows."""

    def forward(self, x: Tensor, index: Tensor) -> dict[str, Tensor]:
        wide = index.unsqueeze(-1).expand(-1, -1, 4)
        own = torch.stack([index, index, index, 2 - index.clamp(max=2)], -1)
        return {
            "each its own": x.gather(1, own),
            "part of the row": x.gather(1, wide[..., :1].expand(-1, -1, 3)),
            "fewer items": x.gather(1, wide[:1]),
            "other dim": x.gather(0, wide.clamp(max=1)),
            "vector": index.gather(1, index.clamp(max=2)),
            "part of src": x.scatter(1, wide, torch.ones(2, 5, 6)),
            "scalar": x[0, 0, 0].gather(0, index[0, 0] * 0),
            "scalar scatter": x[0, 0, 0].scatter(0, index[0, 0] * 0, x[1, 1, 1]),
        }


def inputs() -> dict[str, Tensor]:
    torch.manual_seed(0)
    index = torch.tensor([[0, 2, 4], [1, 2, 3]])
    return {"x": torch.randn(2, 5, 4), "heads": torch.randn(2, 3, 5, 2), "index": index}


def test_rows_are_looked_up_whole_and_equal_torch(tmp_path: Path) -> None:
    kinds = agree(Whole(), inputs(), tmp_path)
    assert kinds["GatherElements"] == kinds["ScatterElements"] == 0
    assert kinds["GatherND"] >= 2 and kinds["ScatterND"] == 3


def test_rows_are_looked_up_whole_at_a_dynamic_batch(tmp_path: Path) -> None:
    n = torch.export.Dim("n", min=1, max=8)
    shapes: dict[str, dict[int, object]] = {name: {0: n} for name in ("x", "heads", "index")}
    one = {name: value[:1] for name, value in inputs().items()}
    kinds = agree(Whole(), inputs(), tmp_path, None, shapes, one)
    assert kinds["GatherElements"] == kinds["ScatterElements"] == 0


def test_what_is_not_rows_equals_torch_too(tmp_path: Path) -> None:
    given = inputs()
    del given["heads"]
    kinds = agree(Elements(), given, tmp_path)
    assert kinds["GatherElements"] > 0 and kinds["ScatterElements"] > 0


class Groups(nn.Module):
    """The rows of groups of four, by the number of the group."""

    def forward(self, x: Tensor, best: Tensor) -> Tensor:
        rows = torch.topk(best, 3).indices.sort().values[:, None] * 4 + torch.arange(4)
        return x[rows.flatten()]


def test_rows_of_groups_are_counted_without_a_word_on_shapes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    agree(Groups(), {"x": torch.randn(24, 5), "best": torch.randn(6)}, tmp_path)
    assert "Shape inference failed" not in caplog.text
