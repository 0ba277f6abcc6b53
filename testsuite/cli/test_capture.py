import math

import pytest
import torch
from torch import Tensor, nn

from tokopt.cli.capture import Capture, largest_difference
from tokopt.ir.errors import UnsupportedError


class Double(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2


class BranchOnValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class BakedIn(nn.Module):
    """Equals Double on the first input it ever sees and repeats that answer."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([2.0, 4.0]) + 0 * x


def capture(module: nn.Module) -> Capture:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([5.0, 7.0])
    return Capture(module, Double(), (first,), ((second,),), None, {})


def test_a_faithful_capture_differs_by_nothing() -> None:
    case = capture(Double())
    assert set(case.differences(case.trace()).values()) == {0.0}


def test_a_value_baked_into_the_graph_shows_on_the_second_sample() -> None:
    case = capture(BakedIn())
    first, second = case.differences(case.trace()).values()
    assert first == 0.0 and second > 0.1


def test_a_model_that_branches_on_values_is_refused_with_the_cause() -> None:
    with pytest.raises(UnsupportedError, match=r"torch\.export cannot capture") as caught:
        capture(BranchOnValue()).trace()
    assert caught.value.__cause__ is not None


class Broken(nn.Module):
    """What a release of a library that cannot run its own model does."""

    def forward(self, x: Tensor) -> Tensor:
        raise AttributeError("no attribute 'image_outputs'\nsecond line")


def test_a_model_that_fails_without_tracing_is_said_to() -> None:
    with pytest.raises(UnsupportedError, match="fails when it is called") as caught:
        capture(Broken()).trace()
    assert caught.value.where == "AttributeError: no attribute 'image_outputs'"
    assert "another version" in str(caught.value)


def test_differences_are_relative_to_large_outputs_only() -> None:
    want = torch.tensor([100.0, 0.0])
    assert largest_difference(want + 1, want) == pytest.approx(0.01)
    assert largest_difference(want / 1000 + 0.5, want / 1000) == pytest.approx(0.5)


@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [0.0]])
def test_wrong_shapes_and_values_that_are_not_finite_differ_infinitely(bad: list[float]) -> None:
    assert largest_difference(torch.tensor(bad), torch.zeros(2)) == math.inf


class Padded(nn.Module):
    """Rows are doubled; ``noise`` is added where the mask is 0."""

    def __init__(self, noise: float, kept: float = 0.0) -> None:
        super().__init__()
        self.noise, self.kept = noise, kept

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return 2 * x + torch.where(mask.bool(), self.kept, self.noise)[..., None]


@pytest.mark.parametrize(("kept", "difference"), [(0.0, 0.0), (0.5, 0.5)])
def test_only_rows_that_are_not_padding_are_compared(kept: float, difference: float) -> None:
    inputs = (torch.rand(1, 3, 2) / 2, torch.tensor([[0, 1, 1]]))
    case = Capture(Padded(9.0, kept), Padded(0.0), inputs, (), None, {}, padding=1)
    assert list(case.differences(case.trace()).values()) == [pytest.approx(difference)]


class AtLeastFour(nn.Module):
    """What it does is decided by its size."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] > 3 else x * 2 + 1


def test_a_size_that_a_guard_refuses_is_an_unsupported_capture() -> None:
    shapes = ({0: torch.export.Dim.AUTO},)
    case = Capture(AtLeastFour(), Double(), (torch.ones(5, 2),), ((torch.ones(2, 2),),), shapes, {})
    with pytest.raises(UnsupportedError, match="does not run at other sizes") as caught:
        case.differences(case.trace())
    assert isinstance(caught.value.__cause__, AssertionError)
