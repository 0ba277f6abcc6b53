from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testsuite.targets.onnx.running import agree
from torch import Tensor, nn
from torch.export import Dim

DRAWN = torch.Generator().manual_seed(0)
ITEMS, HEADS, ROWS, WIDTH = 2, 3, 5, 8
ANGLES = torch.rand(WIDTH // 2, generator=DRAWN)


def turned(x: Tensor) -> Tensor:
    left, right = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
    return torch.cat((-right, left), dim=-1)


class Tables(nn.Module):
    """Cosines and sines of the rows' angles, each angle once for either half."""

    def tables(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions[:, :, None].float() * ANGLES
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(dtype).unsqueeze(1), both.sin().to(dtype).unsqueeze(1)


class Rotary(Tables):
    """As libraries write it; the rows' angles are picked as a stage picks them."""

    def forward(self, x: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        cos, sin = (t.index_select(2, rows) for t in self.tables(positions, x.dtype))
        return x * cos + turned(x) * sin


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("items", [1, ITEMS])
def test_a_written_out_rotation_is_one_operator_that_computes_the_same(
    dtype: torch.dtype, items: int, tmp_path: Path
) -> None:
    """Positions of every item's own, or shared by all."""
    x = torch.randn(ITEMS, HEADS, ROWS, WIDTH, generator=DRAWN).to(dtype)
    positions = torch.randint(0, 50, (items, ROWS + 4), generator=DRAWN)
    rows = torch.tensor([1, 2, 4, 7, 8])
    kinds = agree(Rotary(), {"x": x, "positions": positions, "rows": rows}, tmp_path)
    assert kinds["RotaryEmbedding"] == 1 and kinds["Neg"] == 0


def test_it_holds_at_every_batch_size(tmp_path: Path) -> None:
    def given(items: int) -> dict[str, Tensor]:
        return {
            "x": torch.randn(items, HEADS, ROWS, WIDTH, generator=DRAWN),
            "positions": torch.randint(0, 50, (1, ROWS), generator=DRAWN),
            "rows": torch.arange(ROWS),
        }

    free: dict[str, dict[int, object]] = {"x": {0: Dim("batch")}, "positions": {}, "rows": {}}
    kinds = agree(Rotary(), given(2), tmp_path, None, free, given(1), given(3))
    assert kinds["RotaryEmbedding"] == 1


class Picked(Tables):
    """Every item keeps rows of its own, looked up in the rows of all items in one list."""

    def forward(self, x: Tensor, positions: Tensor, rows: Tensor) -> Tensor:
        cos, sin = (self.picked(t, rows) for t in self.tables(positions, x.dtype))
        return x * cos + turned(x) * sin

    def picked(self, table: Tensor, rows: Tensor) -> Tensor:
        items, kept = rows.shape
        flat = table.transpose(1, 2).reshape(-1, 1, WIDTH).index_select(0, rows.flatten())
        return flat.reshape(items, kept, 1, WIDTH).transpose(1, 2)


def test_it_holds_where_every_item_keeps_rows_of_its_own(tmp_path: Path) -> None:
    def given(items: int, length: int) -> dict[str, Tensor]:
        return {
            "x": torch.randn(items, HEADS, ROWS, WIDTH, generator=DRAWN),
            "positions": torch.arange(length)[None],
            "rows": torch.randint(0, length, (items, ROWS), generator=DRAWN),
        }

    batch, length = Dim("batch"), Dim("length")
    free: dict[str, dict[int, object]]
    free = {"x": {0: batch}, "positions": {1: length}, "rows": {0: batch}}
    kinds = agree(Picked(), given(2, 7), tmp_path, None, free, given(1, 9), given(3, 6))
    assert kinds["RotaryEmbedding"] == 1 and kinds["Neg"] == 0


class Swapped(Tables):
    """The columns with one angle each are where the rows were."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = (table.transpose(2, 3) for table in self.tables(positions, x.dtype))
        return x * cos + turned(x) * sin


def test_tables_whose_rows_and_columns_change_places_stay_written_out(tmp_path: Path) -> None:
    x = torch.randn(1, HEADS, WIDTH, WIDTH, generator=DRAWN)
    given = {"x": x, "positions": torch.arange(WIDTH)[None]}
    assert agree(Swapped(), given, tmp_path)["RotaryEmbedding"] == 0


class Others(Tables):
    """None of these rotates pairs by one angle each, or not to be seen from the graph."""

    def forward(self, x: Tensor, positions: Tensor, table: Tensor) -> dict[str, Tensor]:
        cos, sin = self.tables(positions, x.dtype)
        angles = positions[:, :, None].float() * ANGLES
        uneven = torch.cat((angles, angles + 1), dim=-1).cos().unsqueeze(1)
        left, right = x[..., : WIDTH // 2], x[..., WIDTH // 2 :]
        return {
            "halves differ": x * uneven + turned(x) * sin,
            "given from outside": x * table + turned(x) * table,
            "the wrong half is negated": x * cos + torch.cat((right, -left), -1) * sin,
            "another value is turned": x * cos + turned(x + 1) * sin,
        }


def test_what_only_looks_like_a_rotation_stays_written_out(tmp_path: Path) -> None:
    x = torch.randn(1, HEADS, ROWS, WIDTH, generator=DRAWN)
    table = torch.randn(1, 1, ROWS, WIDTH, generator=DRAWN)
    positions = torch.arange(ROWS)[None]
    given = {"x": x, "positions": positions, "table": table}
    assert agree(Others(), given, tmp_path)["RotaryEmbedding"] == 0
