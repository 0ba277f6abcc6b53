"""Which layers choose: the paper's at the paper's depth, those of least loss of all there are."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from tokopt.ir.errors import InputError, TokoptError, UnsupportedError
from tokopt.passes.sparse_decode.groups import Groups
from tokopt.passes.sparse_decode.pages import Pages
from tokopt.passes.sparse_decode.pays import paying_rows
from tokopt.passes.sparse_decode.placement import (
    grouped,
    least_loss,
    losses,
    measured_pages,
    published,
)


def test_at_the_published_depth_the_layers_are_the_papers() -> None:
    groups = published(28)
    assert (groups.full, groups.select) == ((0, 1), (2, 14, 22))
    assert groups.source[3] == 2 and groups.source[21] == 14 and groups.source[27] == 22


@pytest.mark.parametrize("layers", [2, 3, 4, 6, 12, 24, 32, 48, 80])
def test_every_depth_has_layers_of_each_kind(layers: int) -> None:
    groups = published(layers)
    assert groups.sparse and len(groups.select) <= 3
    assert sorted([*groups.full, *groups.select, *groups.sparse]) == list(range(layers))


@pytest.mark.parametrize("dense", [1, 2, 3, 5])
def test_the_layers_of_least_loss_are_those_that_trying_all_finds(dense: int) -> None:
    layers = 8
    for seed in range(5):
        lost = torch.rand(layers, layers, generator=torch.Generator().manual_seed(seed)).tolist()
        found = []
        for whole in combinations(range(layers), dense):
            if whole[0] == 0:
                groups = grouped(layers, whole)
                total = sum(lost[source][depth] for depth, source in groups.source.items())
                found.append((total, whole))
        got = least_loss(lost, dense)
        assert tuple(sorted([*got.full, *got.select])) == min(found)[1]


def test_layers_that_none_follows_do_not_choose() -> None:
    groups = grouped(8, [0, 1, 4, 7])
    assert (groups.full, groups.select, groups.sparse) == ((0, 7), (1, 4), (2, 3, 5, 6))


def test_no_layer_follows_a_choice_across_a_stage_that_drops_rows() -> None:
    for groups in (published(12, [5]), least_loss([[0.0] * 12] * 12, 1, [5])):
        assert groups.torn([5]) is None
    assert Groups(12, (0,), (1,)).torn([5]) == 5


def test_what_is_lost_is_the_probability_on_pages_that_are_not_chosen() -> None:
    """Pages of two rows, one kept beside the last: layer 0 chooses page 0, layer 1 page 1."""
    first = torch.tensor([[[0.7, 0.1, 0.1, 0.0, 0.1]]])
    second = torch.tensor([[[0.1, 0.1, 0.3, 0.3, 0.2]]])
    lost = losses([first, second], Pages(2, 2, 1))
    assert lost[0] == pytest.approx([0.1, 0.6]) and lost[1] == pytest.approx([0.8, 0.2])


def test_layers_of_a_short_cache_are_compared_with_a_quarter_of_its_rows() -> None:
    assert measured_pages(4096, Pages()) == Pages()
    assert measured_pages(147, Pages()) == Pages(9, 4, 1)
    assert measured_pages(5, Pages()) == Pages(1, 1, 1)


def test_it_pays_from_where_bytes_are_equal() -> None:
    """28 layers of keys and values of 8: 23 sparse ones save 2T - 6·1024 each, 3 cost T."""
    rows = paying_rows(published(28), Pages(), [(8, 8)] * 28)
    assert 43 * (rows - 1) < 6 * 1024 * 23 <= 43 * rows and rows == 3287
    with pytest.raises(UnsupportedError, match="at any length"):
        paying_rows(Groups(3, (), (0, 1)), Pages(), [(8, 8)] * 3)


@pytest.mark.parametrize(
    ("layers", "full", "select"),
    [(4, (0,), (4,)), (4, (0, 1), (1,)), (4, (0, 1), (2, 3)), (4, (), (1,)), (4, (0,), ())],
)
def test_layers_that_make_no_groups_are_refused(
    layers: int, full: tuple[int, ...], select: tuple[int, ...]
) -> None:
    with pytest.raises(InputError):
        Groups(layers, full, select)
    with pytest.raises(TokoptError):
        published(1)
