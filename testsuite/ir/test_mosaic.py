"""Mosaics: told from the order of rows alone, or not at all."""

import pytest

from tokopt.ir.mosaic import Mosaic, find_mosaic


def stitched(rows: int, columns: int, newline: bool, whole_last: bool = False) -> list[int]:
    """Tiles of 2 x 3 patches put together line by line; the whole picture is 2 x 3, too."""
    first = 0 if whole_last else 1
    lines = []
    for row in range(rows):
        for _ in range(2):
            for column in range(columns):
                lines += [first + row * columns + column] * 3
            lines += [-1] * newline
    whole = [0 if not whole_last else rows * columns] * 6
    return [*lines, *whole] if whole_last else [*whole, *lines]


@pytest.mark.parametrize(("rows", "columns"), [(1, 2), (2, 1), (2, 2), (3, 2), (1, 4), (4, 1)])
def test_tiles_put_together_line_by_line_tell_how_they_lie(rows: int, columns: int) -> None:
    count = rows * columns + 1
    assert find_mosaic(stitched(rows, columns, True), count) == Mosaic(0, rows, columns)
    last = stitched(rows, columns, True, whole_last=True)
    assert find_mosaic(last, count) == Mosaic(count - 1, rows, columns)


def test_without_newlines_one_column_looks_like_single_pictures() -> None:
    assert find_mosaic(stitched(2, 2, False), 5) == Mosaic(0, 2, 2)
    assert find_mosaic(stitched(3, 1, False), 4) is None


@pytest.mark.parametrize(
    ("tiles", "count"),
    [
        ([0] * 6, 1),
        ([0] * 6 + [1] * 6, 2),
        ([0] * 6 + [1, 2] * 2, 4),  # a tile of which nothing comes
        ([0] * 6 + [2, 1] * 2, 3),  # not in raster order
        ([0] * 6 + [1, 2] * 2 + [3, 1] * 2, 4),  # a line of two, then one of one
        ([1, 2] * 2, 2),
    ],
)
def test_other_orders_tell_nothing(tiles: list[int], count: int) -> None:
    assert find_mosaic(tiles, count) is None
