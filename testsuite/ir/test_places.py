"""Where rows come from: towers, groups, several images, newlines, and graphs that do not tell."""

import pytest
import torch
from testsuite.passes.analysed import analysed
from torch import nn
from torch.export import export

from tokopt.ir.errors import InputError, UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.ir.places import Places, arrived_places, stated_places
from tokopt.passes.normalize import normalize


@pytest.mark.parametrize("name", ["llava", "llava_dynamic", "dino", "handvit"])
def test_rows_of_a_square_image_are_in_raster_order(name: str) -> None:
    facts = analysed(name).facts
    for stack in facts.stacks:
        places = facts.places(stack)
        assert places.shape == (1, 6, 6)
        assert places.table.tolist() == [[0, i // 6, i % 6] for i in range(36)]


def test_packed_patches_have_no_place_that_the_graph_tells() -> None:
    facts = analysed("qwen").facts
    for stack in facts.stacks:
        with pytest.raises(UnsupportedError, match="where in the image the rows of"):
            facts.places(stack)


class Wide(nn.Module):
    """Patches cut by views alone, columns before lines: rows run down the columns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Linear(12, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        cut = image.reshape(image.shape[0], 3, 3, 2, 5, 2)
        rows = self.embed(cut.permute(0, 4, 2, 1, 3, 5).flatten(1, 2).flatten(2))
        for _ in range(2):
            rows = rows + self.mix(rows, rows, rows, need_weights=False)[0]
        return self.head(rows.mean(1))


def test_patches_cut_by_views_in_another_order() -> None:
    program = export(Wide().eval().requires_grad_(False), (torch.zeros(2, 3, 6, 10),))
    facts = analyse(normalize(program))
    places = facts.places(facts.stacks[0])
    assert places.shape == (1, 3, 5)
    assert places.table.tolist() == [[0, i % 3, i // 3] for i in range(15)]


def test_groups_that_arrive_are_places_of_a_coarser_grid() -> None:
    tower = stated_places("2x4", 8)
    units = torch.tensor([0, 0, 1, 1, 0, 0, 1, 1])  # 2 x 2 blocks
    found = arrived_places(tower, units, torch.tensor([0, 1, -1, 2, 3]))
    assert found.shape == (2, 1, 2)
    assert found.table.tolist() == [[0, 0, 0], [0, 0, 1], [-1, -1, -1], [1, 0, 0], [1, 0, 1]]


def test_a_stated_grid() -> None:
    assert isinstance(stated_places("2x3", 6), Places)
    assert stated_places("2x1x3", 6).table.tolist() == [[i // 3, 0, i % 3] for i in range(6)]
    for grid in ("6", "2x2", "0x6", "axb", "1x2x3x1", "-2x-3"):
        with pytest.raises(InputError, match="grid"):
            stated_places(grid, 6)
