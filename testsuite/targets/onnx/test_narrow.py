from __future__ import annotations

from pathlib import Path

import onnx
import torch
from testsuite.targets.onnx.running import agree
from torch import Tensor, nn


class Sorts(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        def order(of: Tensor) -> Tensor:
            return torch.sort(of, dim=1, descending=True, stable=True).indices

        narrow, both = torch.sort(x * 2, dim=1, descending=True), order(x * 3)
        return {
            "narrow": order(x)[:, :3],
            "values and indices": narrow.values[:, :2] * narrow.indices[:, :2],
            "whole": both,
            "two counts": torch.cat([both[:, :2], both[:, :4]], 1),
            "later": order(x * 4)[:, 2:4],
            "other axis": order(x * 5)[:1],
        }


def test_only_sorts_of_which_one_first_part_is_read_are_narrowed(tmp_path: Path) -> None:
    """Ties everywhere: the kept ones must be the lower indices."""
    kinds = agree(
        Sorts(), {"x": torch.tensor([[1.0, 0, 1, 1, 0, 1], [0.0, 0, 0, 1, 0, 0]])}, tmp_path
    )
    model = onnx.load(tmp_path / "model.onnx")
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    counts = [int(weights[n.input[1]][0]) for n in model.graph.node if n.op_type == "TopK"]
    assert sorted(counts) == [2, 3, 6, 6, 6]
    assert kinds["Slice"] == 4
