import pytest
import torch
from torch import Tensor, nn

from tokopt.cli.static_tensor import FoldFactories, StaticTensor


def export(module: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), inputs, strict=False)


class Windows(nn.Module):
    """Splits rows into runs whose lengths come from ``sizes``, as windowed towers do."""

    def __init__(self, sizes: Tensor) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        kept = self.sizes[self.sizes > 0]  # a boolean index: its length is a value
        parts = x.split(kept.tolist())
        return torch.stack([part.sum(0) for part in parts]) * kept.unsqueeze(1)


def test_a_model_that_turns_geometry_into_ints_is_captured() -> None:
    sizes, x = torch.tensor([3, 0, 2]), torch.randn(5, 4)
    exported = export(Windows(StaticTensor.of(sizes)), x)
    other = torch.randn(5, 4)
    assert torch.equal(exported.module()(other), Windows(sizes)(other))


def test_without_static_geometry_the_same_model_is_not_captured() -> None:
    with pytest.raises(Exception, match=r"[Dd]ata.dependent|unbacked|Could not"):
        export(Windows(torch.tensor([3, 0, 2])), torch.randn(5, 4))


def test_operations_on_static_tensors_leave_no_node_in_the_graph() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.grid = StaticTensor.of(torch.tensor([4, 6]))

        def forward(self, x: Tensor) -> Tensor:
            return x * (self.grid.prod() // 2).item()

    targets = [str(n.target) for n in export(Scaled(), torch.ones(2)).graph.nodes]
    assert [t for t in targets if t.startswith("aten")] == ["aten.mul.Tensor"]


def test_values_that_depend_on_inputs_are_never_folded() -> None:
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with FoldFactories():
                return x + torch.arange(3) * x.sum()

    x, other = torch.randn(3), torch.randn(3)
    exported = export(Mixed(), x)
    assert torch.equal(exported.module()(other), Mixed()(other))


def test_folding_ends_with_the_context() -> None:
    with FoldFactories():
        inside = torch.arange(3)
    assert isinstance(inside, StaticTensor)
    assert not isinstance(torch.arange(3), StaticTensor)


def test_a_range_of_a_free_size_is_not_folded() -> None:
    class Positions(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            with FoldFactories():
                return x + torch.arange(x.shape[0])

    size = torch.export.Dim("size", min=2)
    exported = torch.export.export(
        Positions(), (torch.zeros(4),), dynamic_shapes=({0: size},), strict=False
    )
    assert exported.module()(torch.zeros(6)).tolist() == [0, 1, 2, 3, 4, 5]


def test_a_static_tensor_is_a_copy() -> None:
    source = torch.tensor([1, 2])
    static = StaticTensor.of(source)
    source[0] = 9
    assert static.tolist() == [1, 2]
