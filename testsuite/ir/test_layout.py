import pytest
import torch

from tokopt.ir.layout import Layout


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(None, (0,), (1,), 2, 3), (2, 3, 4, 4)),
        (Layout(None, (1,), (0,), 2, 3), (3, 2, 4, 4)),
        (Layout((-3, 2, 3, -2, -2), (0,), (1,), 2, 3), (6, 4, 4)),
        (Layout((-3, 3, 2, -2, -2), (1,), (0,), 2, 3), (6, 4, 4)),
    ],
)
def test_a_layout_puts_back_what_it_shows(layout: Layout, shape: tuple[int, ...]) -> None:
    like = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    shown = layout.apply(like)
    assert torch.equal(layout.put(shown, like), like)
    one = torch.randn(2, 1, 1, 7, generator=torch.Generator().manual_seed(1))
    laid = layout.put(one, like)
    assert laid.dim() == like.dim()
    wide = laid.expand(*like.shape[:-2], 1, 7)
    assert torch.equal(layout.apply(wide), one.expand(2, 3, 1, 7))
