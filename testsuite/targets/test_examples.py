from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import Dim, export

from tokopt.targets.examples import example_tensors
from tokopt.targets.signature import signature_of


class Pairs(nn.Module):
    def forward(self, x: Tensor, twice: Tensor, flags: Tensor) -> Tensor:
        return x.repeat_interleave(2, 0) + twice + flags.sum()


def test_examples_have_sizes_that_fit_each_other_and_the_ranges() -> None:
    n = Dim("n", min=4, max=9)
    given = torch.randn(5, 3), torch.randn(10, 3), torch.ones(1, dtype=torch.bool)
    exported = export(Pairs(), given, dynamic_shapes=({0: n}, {0: 2 * n}, None))
    zeros = example_tensors(exported)
    assert {name: tuple(value.shape) for name, value in zeros.items()} == {
        "x": (4, 3), "twice": (8, 3), "flags": (1,),
    }  # fmt: skip
    assert zeros["flags"].dtype == torch.bool
    assert exported.module()(*zeros.values()).shape == (8, 3)


class Apart(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x.sum() + y.sum()


def test_leading_sizes_that_differ_are_not_called_batch() -> None:
    shapes = ({0: Dim("a")}, {0: Dim("b")})
    exported = export(Apart(), (torch.randn(3), torch.randn(4)), dynamic_shapes=shapes)
    assert [spec.shape for spec in signature_of(exported).inputs] == [("x_dim0",), ("y_dim0",)]
