import pytest
import torch
from testsuite.zoo.sample import capture
from torch import Tensor, nn
from torch.export import Dim

from tokopt.ir.binding import bind
from tokopt.ir.errors import InputError


class Everything(nn.Module):
    """A parameter, both kinds of buffer, a constant, a flag and two inputs that share a size."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("kept", torch.full((3,), 3.0))
        self.register_buffer("dropped", torch.full((3,), 4.0), persistent=False)

    def forward(self, left: Tensor, right: Tensor, flag: bool = True) -> Tensor:
        fixed = torch.tensor([1.0, 2.0, 3.0])
        return (left + right if flag else left) * self.weight + self.kept + self.dropped + fixed


@pytest.fixture(scope="module")
def exported() -> torch.export.ExportedProgram:
    rows = Dim("rows", min=2, max=9)
    inputs = (torch.zeros(2, 3), torch.zeros(2, 3))
    return capture(Everything(), inputs, ({0: rows}, {0: rows}))


def test_a_graph_run_on_bound_values_is_the_program(
    exported: torch.export.ExportedProgram,
) -> None:
    left, right = torch.randn(5, 3), torch.randn(5, 3)
    values = bind(exported, {"left": left, "right": right})
    (found,) = torch.fx.Interpreter(exported.graph_module).run(*values)
    torch.testing.assert_close(found, exported.module()(left, right))


@pytest.mark.parametrize(
    ("left", "right", "text"),
    [
        ((5, 4), (5, 3), r"input 'left' is torch.float32 \[5, 4\]"),
        ((5, 3), (4, 3), r"input 'right' is torch.float32 \[4, 3\]"),
        ((5, 3, 1), (5, 3), "input 'left'"),
    ],
)
def test_a_shape_the_program_was_not_exported_for_is_refused(
    exported: torch.export.ExportedProgram,
    left: tuple[int, ...],
    right: tuple[int, ...],
    text: str,
) -> None:
    with pytest.raises(InputError, match=text):
        bind(exported, {"left": torch.zeros(left), "right": torch.zeros(right)})


def test_names_and_types_are_checked(exported: torch.export.ExportedProgram) -> None:
    with pytest.raises(InputError, match="no input 'middle'"):
        bind(exported, {"middle": torch.zeros(5, 3)})
    with pytest.raises(InputError, match="no value is given for the input 'right'"):
        bind(exported, {"left": torch.zeros(5, 3)})
    with pytest.raises(InputError, match=r"torch\.float64"):
        bind(exported, {"left": torch.zeros(5, 3).double(), "right": torch.zeros(5, 3)})
