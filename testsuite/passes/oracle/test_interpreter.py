"""The interpreter on graphs where a stage would not be legal or not be found: any rows may go."""

from __future__ import annotations

import pytest
import torch
from testsuite.passes.oracle.tiny_block import Block, Form
from torch import Tensor, nn

from tokopt.ir.binding import bind
from tokopt.ir.errors import UnsupportedError
from tokopt.ir.facts import analyse
from tokopt.passes.normalize import normalize
from tokopt.passes.oracle.dead import Marked
from tokopt.passes.oracle.interpreter import MaskedInterpreter

ROWS, HIDDEN = 6, 12


class Between(nn.Module):
    """``x [6, 12]``: rows are dropped from ``x + 0.5``, then ``after`` reads them."""

    def __init__(self, after: nn.Module) -> None:
        super().__init__()
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + 0.5)


def without(after: nn.Module, x: Tensor, *choices: list[int]) -> list[Tensor | Marked]:
    """Interpret ``Between`` with rows of the sum dropped, once per choice; return the outputs."""
    model = Between(after).eval().requires_grad_(False)
    facts = analyse(normalize(torch.export.export(model, (x,), strict=False)))
    sums = facts.exported.graph.find_nodes(op="call_function", target=torch.ops.aten.add.Tensor)
    found = []
    for dropped in choices:
        dead = torch.tensor([[row in dropped] for row in range(len(x))])
        visits = {sums[0]: lambda value, dead=dead: value.masked_fill(dead, torch.nan)}
        interpreter = MaskedInterpreter(facts, visits, set())
        found += interpreter.execute(bind(facts.exported, {"x": x}))
    return found


class Windows(nn.Module):
    """Rows are permuted, attend within windows of 2, go back, and attend all together."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Block(Form(layout="NH"), 2)
        self.whole = Block(Form(layout="NH", attention="spelled"), ROWS)
        self.register_buffer("order", torch.tensor([3, 0, 5, 1, 4, 2]))

    def forward(self, x: Tensor) -> Tensor:
        windows = x[self.order].split(2)
        x = torch.cat([self.window(part) for part in windows])
        return self.whole(x[self.order.argsort()])

    def shortened(self, x: Tensor, left: list[int]) -> Tensor:
        """Return the rows ``left``, computed without the others."""
        found = {}
        for window in self.order.view(-1, 2).tolist():
            here = [row for row in window if row in left]
            if here:
                rows, _ = self.window.shortened(x[here][None], torch.arange(len(here))[None])
                found |= dict(zip(here, rows[0], strict=True))
        rows = torch.stack([found[row] for row in left])
        return self.whole.shortened(rows[None], torch.tensor([left]))[0][0]


def test_windows_lose_their_members_wherever_rows_are_moved() -> None:
    torch.manual_seed(0)
    model, x, choices = (
        Windows(),
        torch.randn(ROWS, HIDDEN),
        [[1], [0, 3], [1, 2, 5], [0, 1, 2, 3, 5]],
    )
    for found, dropped in zip(without(model, x, *choices), choices, strict=True):
        left = [row for row in range(ROWS) if row not in dropped]
        assert found.isnan().all(-1).nonzero().flatten().tolist() == dropped
        want = model.shortened(x + 0.5, left)
        torch.testing.assert_close(found[left], want, rtol=1e-4, atol=1e-5)


class Choice(nn.Module):
    """An output that is no floating-point tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x.argmax(-1)


def test_an_integer_output_of_a_dropped_row_is_marked() -> None:
    x = torch.randn(ROWS, HIDDEN)
    (found,) = without(Choice(), x, [2, 4])
    assert isinstance(found, Marked) and found.dead.nonzero().flatten().tolist() == [2, 4]
    assert torch.equal(found.tensor[found.dead.logical_not()], x[[0, 1, 3, 5]].argmax(-1))


class Scatter(nn.Module):
    """Rows are added up at positions."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros(3, HIDDEN).index_add(0, torch.tensor([0, 1, 2, 0, 1, 2]), x)


def test_an_operator_without_a_rule_is_named_where_it_reads_dropped_rows() -> None:
    with pytest.raises(UnsupportedError, match="index_add"):
        without(Scatter(), torch.randn(ROWS, HIDDEN), [1])


def test_an_operator_without_a_rule_is_no_matter_where_it_reads_none() -> None:
    x = torch.randn(ROWS, HIDDEN)
    (found,) = without(Scatter(), x, [])
    torch.testing.assert_close(found, Scatter()(x + 0.5))
