import dataclasses

import pytest
import torch
from testsuite.passes.analysed import analysed
from testsuite.passes.families import checked, every_input, failures, plan
from testsuite.passes.methods.drawn_taps import drawn_taps
from testsuite.passes.methods.test_fold_laws import chosen
from torch import Tensor
from torch.nn import functional

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.places import Places
from tokopt.passes.fit import fit
from tokopt.passes.methods.downsample import METHOD, _cells
from tokopt.passes.methods.method import Taps


def taps_on(shape: tuple[int, int, int], keep: int) -> Taps:
    """Rows in raster order on a grid, behind two learned rows."""
    tiles, height, width = shape
    count = tiles * height * width
    taps = drawn_taps(rows=count + 2, keep=keep)
    number = torch.arange(count)
    table = torch.stack(
        [number // (height * width), number // width % height, number % width], dim=-1
    )
    table = functional.pad(table, (0, 0, 2, 0), value=-1).expand(2, -1, -1)
    return dataclasses.replace(taps, places=Places(*table.unbind(-1), shape))


def pooled(taps: Taps) -> Tensor:
    assert METHOD.combine is not None
    return METHOD.combine(taps, chosen("downsample", taps))[:, 2:]


@pytest.mark.parametrize(("height", "width", "keep", "to"), [(6, 6, 9, (3, 3)), (4, 8, 8, (2, 4))])
def test_where_it_divides_it_is_average_pooling(
    height: int, width: int, keep: int, to: tuple[int, int]
) -> None:
    taps = taps_on((1, height, width), keep)
    image = taps.hidden[:, 2:].unflatten(1, (height, width)).permute(0, 3, 1, 2)
    wanted = functional.adaptive_avg_pool2d(image, to).flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled(taps), wanted)


@pytest.mark.parametrize("shape", [(1, 6, 6), (1, 3, 7), (3, 4, 5), (4, 1, 6)])
def test_every_count_is_met_and_every_row_is_in_one_cell_of_its_tile(
    shape: tuple[int, int, int],
) -> None:
    count = shape[0] * shape[1] * shape[2]
    for keep in range(1, count + 1):
        taps = taps_on(shape, keep)
        cells = _cells(taps)[0, 2:]
        inside = cells[cells >= 0]
        assert inside.unique().tolist() == list(range(keep))
        assert int((METHOD.score(taps)[0] == 1).sum()) == keep
        assert taps.places is not None
        tiles = taps.places.tile[0, 2:]
        for cell in range(keep):
            assert len(tiles[cells == cell].unique()) == 1
        counted = [len(cells[(tiles == t) & (cells >= 0)].unique()) for t in range(shape[0])]
        assert max(counted) - min(counted) <= 1
        if keep >= shape[0]:
            assert len(inside) == count


def test_a_hand_worked_odd_count() -> None:
    """5 of 4 x 4: two bands of two lines, of three cells and of two."""
    cells = _cells(taps_on((1, 4, 4), 5))[0, 2:].reshape(4, 4)
    assert cells.tolist() == [[0, 0, 1, 2], [0, 0, 1, 2], [3, 3, 4, 4], [3, 3, 4, 4]]


def test_it_passes_every_gate() -> None:
    family = analysed("dino")
    done = checked(family, plan("vision:0 downsample 18"))
    assert failures(done, [every_input(family)[0]]) == ""


def test_a_model_that_packs_its_patches_is_refused_unless_the_grid_is_stated() -> None:
    facts = analysed("qwen").facts
    with pytest.raises(UnsupportedError, match="does not tell where in the image"):
        fit(facts, METHOD, 0.25)
    count = facts.consumer.count
    assert isinstance(count, int)
    placed = fit(facts, METHOD, 0.25, options={"grid": f"2x{count // 2}"})
    assert placed.plan.stages[0].site == "decoder:0"
    with pytest.raises(InputError, match="places"):
        fit(facts, METHOD, 0.25, options={"grid": "3x77"})
