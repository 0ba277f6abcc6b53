from __future__ import annotations

from pathlib import Path

import torch
from testsuite.targets.onnx.running import agree
from torch import Tensor, nn


class Operators(nn.Module):
    def forward(self, x: Tensor, flags: Tensor) -> dict[str, Tensor]:
        values, order = torch.sort(x, dim=1, descending=True, stable=True)
        return {
            "sorted": values,
            "order": order,
            "ascending": torch.sort(order, dim=-1).values,
            "flags first": torch.sort(flags.int(), dim=1, descending=True, stable=True).indices,
            "one minus": 1.0 - x,
            "three minus twice": torch.rsub(x, 3, alpha=2),
            "one minus int": 1 - order,
            "one minus whole": 1.0 - order,
            "sixths": torch.arange(1 / 6, 1.0, 1 / 6) + 0 * x.sum(),
            "counted": torch.arange(0, x.shape[1], 2) + order[0, 0],
            "truth chosen": torch.where(flags, x > 4, x < 2),
            "not squeezed": x.squeeze(0),
            "squeezed": x[:, :, None].squeeze(-1),
            "squeezed where one": x[:, None].squeeze((0, 1)),
        }


def test_operators_that_the_exporter_gets_wrong_equal_torch(tmp_path: Path) -> None:
    x = torch.tensor([[1.0, 2.0, 2.0, 0.0, 2.0], [5.0, 5.0, 5.0, 5.0, 7.0]])
    agree(Operators(), {"x": x, "flags": x > 1}, tmp_path)


class Scatters(nn.Module):
    def forward(self, x: Tensor, rows: Tensor, source: Tensor) -> dict[str, Tensor]:
        elements = rows & (x > 0)
        return {
            "rows": x.masked_scatter(rows, source),
            "rows of a flat source": x.masked_scatter(rows, source.flatten()),
            "rows, mask expanded": x.masked_scatter(rows.expand(-1, -1, 4), source),
            "elements": x.masked_scatter(elements, source),
            "broadcast mask": x.masked_scatter(elements[:1], source),
        }


def test_masked_scatter_equals_torch_for_row_masks_and_element_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    rows = torch.tensor([[1, 0, 1, 0, 0], [0, 1, 1, 1, 0]], dtype=torch.bool).unsqueeze(-1)
    inputs = {"x": torch.randn(2, 5, 4), "rows": rows, "source": torch.randn(7, 4)}
    kinds = agree(Scatters(), inputs, tmp_path)
    assert kinds["ScatterND"] == 0 and kinds["NonZero"] == 0


def test_rows_are_scattered_into_any_number_of_items(tmp_path: Path) -> None:
    batch = torch.export.Dim("n", min=1, max=8)
    shapes: dict[str, dict[int, object]] = {"x": {0: batch}, "rows": {0: batch}, "source": {}}
    rows = torch.ones(3, 5, 1, dtype=torch.bool)
    inputs = {"x": torch.randn(3, 5, 4), "rows": rows, "source": torch.randn(20, 4)}
    rows = torch.zeros(2, 5, 1, dtype=torch.bool)  # no row at all
    other = {"x": torch.randn(2, 5, 4), "rows": rows, "source": torch.randn(20, 4)}
    agree(Rows(), inputs, tmp_path, None, shapes, other)


class Rows(nn.Module):
    def forward(self, x: Tensor, rows: Tensor, source: Tensor) -> Tensor:
        return x.masked_scatter(rows, source)
